"""Recipes, sources, mixtures, training and DeepSpeed configurations, and the hand-written rows of the sample.

Data only: read it with `importlib.resources.files("conf")`, which finds it in a checkout, in an installed wheel and in
the zip that `spark-submit --py-files` ships.
"""
