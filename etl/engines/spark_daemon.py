"""pyspark's daemon with our imports made once, so that the workers that it forks have them.

    spark.python.daemon.module=etl.engines.spark_daemon

A worker of pyspark's own daemon imports numpy, pyarrow, pandas, numba and our modules itself, 2 to 3 CPU-seconds for
each core of an executor; a fork of this one starts with them. pyspark's worker collects garbage after each task, 40 ms
where it has loaded numba itself, 1 ms here. The imports start no thread that a fork would miss. The daemon can
only be this module where a plain start of the workers' Python finds it: on this machine, or on executors that have the
package installed, and not with `--py-files`, whose archives reach a worker after it was forked (spark_session.py asks).
"""

import gc
import os
from importlib import import_module

from etl.engines.forks import freeze_for_forks

SHARED = ("pyspark.worker", "etl.run.run")
"""Modules that bring all others with them; by name, because an engine knows no stage."""
VOCABULARY = "STILLHOUSE_SHARED_VOCABULARY"
"""Environment variable: the vocabulary whose tokenizers the workers share, 0.6 CPU-seconds each; set where a run
tokenises."""


def main() -> None:
    """Import, then serve forks until Spark closes the standard input."""
    gc.disable()
    for name in SHARED:
        import_module(name)
    if vocabulary := os.environ.get(VOCABULARY):
        import_module("etl.harmony.encode").TextEncoder(vocabulary)
        import_module("etl.harmony.vocabulary").load_encoding(vocabulary)
    freeze_for_forks()
    gc.enable()
    from pyspark.daemon import manager

    manager()


if __name__ == "__main__":
    main()
