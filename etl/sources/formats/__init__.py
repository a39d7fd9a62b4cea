"""Formats: how files hold rows, one file each."""
