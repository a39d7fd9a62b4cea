"""The plain lines that a run writes to standard error while it is silent for long, as on a busy machine."""

import re

_PROGRESS = re.compile(r"\d+(-\d+)?/\d+ .*: (\d[\d,]* of \d|how far)")


def without_progress(said: str) -> list[str]:
    """The lines of what was said on standard error, without those."""
    return [line for line in said.splitlines() if not _PROGRESS.match(line)]
