"""Commits the decision log: one create-only JSON object a record, before its segment starts.

A run that goes on reads what is there and compares digests, so a stream never changes under a run by accident.
"""

import json

from etl.errors import ConfigError
from etl.hashing import canonical_json
from etl.storage.location import Location
from training.data.plan import Decision


def commit(folder: Location, decision: Decision) -> None:
    """Write the first record of a run, or check that the run in this folder began with the same one.

    Raises:
        ConfigError: it began with another; names the fields that differ.
    """
    location = folder / f"{decision.segment:06d}.json"
    body = {"kind": decision.kind, "segment": decision.segment, "value": decision.value, "digest": decision.digest}
    if location.create((canonical_json(body) + "\n").encode()):
        return
    found = json.loads(location.read())
    if found["digest"] != decision.digest:
        raise ConfigError(
            f"the run in {folder} began with another stream ({_difference(found['value'], decision.value)}); "
            "give this one another `output`, or remove that folder"
        )


def _difference(old: dict[str, object], new: dict[str, object]) -> str:
    names = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return ", ".join(f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in names)
