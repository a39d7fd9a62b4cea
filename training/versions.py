"""One version for the defaults of everything that trains.

Fingerprints of streams and models leave defaults out, so another default alone would resume an old run as if nothing
had changed. It is raised with the default, and enters those fingerprints from 2 on.
"""

from typing import Any, Final

DEFAULTS: Final = 1


def versioned(fingerprint: dict[str, Any], version: int = DEFAULTS) -> dict[str, Any]:
    """A configuration's fingerprint with the version of the defaults that it leaves out."""
    return fingerprint if version == 1 else {**fingerprint, "defaults": version}
