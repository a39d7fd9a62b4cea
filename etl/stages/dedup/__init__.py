"""Duplicates: every stage that finds repeated rows or units."""
