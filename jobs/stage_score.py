"""Runs only the stage `score`; the flags are those of jobs/run_recipe.py. Earlier stages must be committed."""

import sys

from jobs.run_recipe import main_of_stage

if __name__ == "__main__":
    sys.exit(main_of_stage("score", sys.argv[1:]))
