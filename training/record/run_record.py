"""What a run was made of, for who uses its weights later: written once at the start, read by the export.

    OUTPUT/run.json    the configuration, and of each corpus and teacher table the manifest without its list of files

Corpora and tables may be gone or moved when a run is exported, so their manifests are kept with the run. Every start of
the run writes it again, for a configuration that goes on may have more stages.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from etl.errors import ConfigError
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from training.config import TrainConfig
from training.data.stream.plan import StreamConfig

NAME = "run.json"


def write(config: TrainConfig) -> None:
    """Write the record into the run's output; rank 0 does it once the configuration is checked.

    Raises:
        DataError: a corpus or a table is not committed.
    """
    data = json.dumps(record(config), indent=1, sort_keys=True) + "\n"
    (Location.of(config.output) / NAME).replace(data.encode())


def record(config: TrainConfig) -> dict[str, Any]:
    """The record of a run, in JSON types."""
    held_out = [] if config.evaluate is None else [one.corpus for one in config.evaluate.sets.values()]
    return {
        "config": config.model_dump(mode="json"),
        "corpora": _manifests([config.data.corpus, *_of_streams(config, lambda stream: stream.corpus), *held_out]),
        "teacher_tables": _manifests(
            [
                *_of_streams(config, lambda stream: stream.teacher),
                *_of_streams(config, lambda stream: stream.reference),
            ]
        ),
    }


def read(output: Location) -> dict[str, Any]:
    """The record in a run's output.

    Raises:
        ConfigError: there is none.
    """
    try:
        found: dict[str, Any] = json.loads((output / NAME).read())
    except FileNotFoundError as error:
        raise ConfigError(f"{output} has no {NAME}; give the `output` of a training run") from error
    return found


def _of_streams(config: TrainConfig, key: Callable[[StreamConfig], str | None]) -> Iterator[str]:
    streams = (config.stream(stage, arm) for stage in config.stages for arm in stage.arms)
    yield from (url for url in map(key, streams) if url is not None)


def _manifests(urls: list[str]) -> dict[str, Any]:
    """By URL, sorted."""
    return {url: _manifest(url) for url in sorted(set(urls))}


def _manifest(url: str) -> dict[str, Any]:
    manifest = Dataset.open(url).manifest
    return {**manifest.model_dump(mode="json", exclude={"parts"}), "num_tokens": manifest.num_tokens}
