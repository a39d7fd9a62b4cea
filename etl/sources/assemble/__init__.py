"""Rows that are made of several raw rows: trees of messages, tables that are joined, answers to one prompt."""
