"""A student as a folder that transformers loads."""
