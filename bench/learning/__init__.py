"""Whether Lion teaches, in a world whose truth is known: `bench/README.md` says what is measured."""
