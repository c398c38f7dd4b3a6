"""How alike two texts are: ROUGE-L, and whether a text is new. Pure."""
