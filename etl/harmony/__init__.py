"""Harmony: conversations to tokens and supervised spans, and back."""
