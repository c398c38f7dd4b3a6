"""The gateway, through which every call to a paid API goes: calls, their journal, retries. No Ray, no torch."""
