"""The course of a run: its stages, their streams, the state between two steps."""
