"""Mutated pictures through the real decoding processes."""
