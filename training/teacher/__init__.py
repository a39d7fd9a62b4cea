"""Teachers: they score a corpus, or run frozen beside a student."""
