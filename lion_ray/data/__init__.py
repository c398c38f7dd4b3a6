"""From the user's files to pools: formats, duplicates, held-out rows, contamination. Pure, except for reading files."""
