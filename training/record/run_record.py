"""The origin of a run's weights, for later users: written once at the start, read by the export.

    OUTPUT/run.json    the configuration, version and source digest of each objective from outside the package, and of
                       each corpus and teacher table the manifest without its list of files

Corpora and tables may be gone or moved when a run is exported, so their manifests are kept with the run. Every start of
the run writes it again, because the configuration of a resumed run may have more stages.
"""

import json
from collections.abc import Iterable
from typing import Any

from etl.errors import ConfigError, DataError
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from etl.storage.untrusted import MAX_OBJECT_BYTES, NotOursError, parse_tree

NAME = "run.json"


def write(
    output: str,
    config: dict[str, Any],
    code: dict[str, Any],
    corpora: Iterable[str],
    teacher_tables: Iterable[str],
) -> None:
    """Write the record into the run's output; rank 0 does it once the configuration is checked.

    Args:
        output: folder of the run.
        config: its whole configuration, in JSON types.
        code: what identifies each class from outside the package, by the `kind` that names it.
        corpora: folders or URLs of all corpora that it reads.
        teacher_tables: folders or URLs of all tables of scores that it reads.

    Raises:
        DataError: a corpus or a table is not committed.
    """
    found = {
        "config": config,
        "code": code,
        "corpora": _manifests(corpora),
        "teacher_tables": _manifests(teacher_tables),
    }
    (Location.of(output) / NAME).replace((json.dumps(found, indent=1, sort_keys=True) + "\n").encode())


def read(output: Location) -> dict[str, Any]:
    """The record in a run's output.

    Raises:
        ConfigError: there is none.
        DataError: it is damaged.
    """
    try:
        return parse_tree((output / NAME).read_at_most(MAX_OBJECT_BYTES))
    except FileNotFoundError as error:
        raise ConfigError(f"{output} has no {NAME}; give the `output` of a training run") from error
    except NotOursError as error:
        raise DataError(
            f"{output / NAME} is damaged: {error}; the next start of the run will write it again"
        ) from error


def _manifests(urls: Iterable[str]) -> dict[str, Any]:
    """By URL."""
    return {url: _manifest(url) for url in urls}


def _manifest(url: str) -> dict[str, Any]:
    manifest = Dataset.open(url).manifest
    return {**manifest.model_dump(mode="json", exclude={"parts"}), "num_tokens": manifest.num_tokens}
