"""Saves, uploads, finds and converts checkpoints."""
