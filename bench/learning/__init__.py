"""Measures on synthetic tasks with known answers whether Lion improves a student: see `bench/README.md`."""
