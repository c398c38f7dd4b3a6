"""Models: where they come from, how they are prompted, and their files. No Ray."""
