"""Processes of a run: who starts them, who they are, how they stop."""
