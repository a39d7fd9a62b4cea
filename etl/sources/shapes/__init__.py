"""Shapes: how the rows of a data set become conversations, one file each."""
