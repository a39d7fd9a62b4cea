"""Runs only the stage `filter`; the flags are those of jobs/run_recipe.py. Earlier stages must be committed."""

import sys

from jobs.run_recipe import main_of_stage

if __name__ == "__main__":
    sys.exit(main_of_stage("filter", sys.argv[1:]))
