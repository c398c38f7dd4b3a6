"""Discrimination (paper, section 3.2): judging the student's answers against the teacher's. Pure."""
