"""Imitation (paper, section 3.1): the student learns from the teacher's answers. No Ray."""
