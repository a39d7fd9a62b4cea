"""Skill and context buckets, cuts and mixtures."""
