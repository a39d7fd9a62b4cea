"""Teachers: asked for log-probabilities of a corpus, or frozen beside a student."""
