"""Duplicates: MinHash signatures and bands, candidate pairs, their exact verification, and clusters.

Each module consists of pure functions over numpy arrays; the stages that carry their results through a shuffle are in
`etl.stages`.
"""
