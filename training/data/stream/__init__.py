"""The training stream: a pure function of manifest, recipe, seed and decision log."""
