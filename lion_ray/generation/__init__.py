"""Generation (paper, section 3.3): new instructions from hard and easy ones. Pure."""
