"""Losses, as sums and counts, and the LM head that never makes tokens times vocabulary."""
