"""Processes of a run: how they start, their ranks, how they stop."""
