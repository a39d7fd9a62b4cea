"""Stages: functions from datasets to a dataset, each written once above the two verbs of an engine.

`run.run_recipe` calls them in the order of a recipe. What a worker runs is a frozen dataclass with `__call__`: it
pickles, and its fields are all that it knows.
"""
