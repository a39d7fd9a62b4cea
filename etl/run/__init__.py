"""A recipe as a whole: run, planned, estimated."""
