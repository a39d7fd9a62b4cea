"""Evaluates an exported student and baselines."""
