"""Fuzzing of every parser of foreign bytes (`make fuzz`), and the same targets without a fuzzer (`make test`)."""
