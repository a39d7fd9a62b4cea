"""Losses, as sums and counts, and the LM head that never materialises tokens x vocabulary."""
