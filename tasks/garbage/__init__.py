"""Garbage collection: what kept versions need, what nothing needs, and its deletion in a safe order."""
