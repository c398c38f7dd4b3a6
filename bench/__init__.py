"""Benches: each is run by hand, and `README.md` says what it prints."""
