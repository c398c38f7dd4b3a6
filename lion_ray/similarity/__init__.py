"""Text similarity: ROUGE-L, and the novelty of a text. Pure."""
