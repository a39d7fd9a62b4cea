"""Stages: functions from datasets to a dataset, each written once in terms of the two verbs of an engine.

`run.run_recipe` calls them in the order of a recipe. The code for workers is in frozen dataclasses with `__call__`:
they pickle, and depend only on their fields.
"""
