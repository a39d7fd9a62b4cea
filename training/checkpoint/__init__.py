"""Checkpoints: saved, uploaded, found, converted."""
