"""Benches, run by hand; `README.md` explains their output."""
