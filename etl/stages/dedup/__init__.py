"""Duplicates: every stage that finds rows or units that are there twice."""
