"""What a run goes through: its stages, their streams, the state between two steps."""
