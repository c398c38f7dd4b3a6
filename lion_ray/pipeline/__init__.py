"""One run from its configuration to its result: the stages of an iteration, their order, and their driver."""
