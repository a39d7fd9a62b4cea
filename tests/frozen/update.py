"""Write the stored tables anew, from the repository's root: `python -m tests.frozen.update`.

Refuses where rows, a schema or a default changed and no version did. Commit the tables together with the change, and
say in the commit why they differ.
"""

import sys

from tests.frozen import tables


def main() -> int:
    """The exit code: 0 when the tables are as the code makes them now, 2 when a version has to be raised first."""
    made = tables.current()
    found = {name: tables.compare(name, tables.stored(name), table) for name, table in made.items()}
    forbidden = [difference for differences in found.values() for difference in differences if difference.forbidden]
    for difference in forbidden:
        sys.stderr.write(f"{difference}\n")
    if forbidden:
        return 2
    for name, differences in found.items():
        tables.store(name, made[name])
        for difference in differences:
            sys.stdout.write(f"{name}.json: {difference.what}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
