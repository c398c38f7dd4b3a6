"""The only way to a paid API: calls, their journal, retries. No Ray, no torch."""
