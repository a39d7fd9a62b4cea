"""The preamble of an export's chat template: that of the corpus that the model was trained on last.

A run reads its corpora's preambles from their manifests, as its record has kept them (`findings.preambles`). Of several
corpora the one of the last stage counts, there that of the arm with the largest share, since a model speaks as what it
saw last; raw text has none. What could not be told is said in `notes`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from etl import conf
from etl.harmony.render import Preamble
from etl.harmony.step import PREAMBLE_FIELDS, PREAMBLES, HarmonyStep


@dataclass(frozen=True)
class Spoken:
    """How a model is to be spoken to."""

    preamble: Preamble
    corpus: str | None
    """Whose it is; None where no corpus tells one, so that it is the default of the step `harmony`."""
    notes: tuple[str, ...]
    """What the user should know of the choice, a sentence or two each."""


def spoken(record: dict[str, Any]) -> Spoken:
    """From the record of a run (training/record/run_record.py).

    Raises:
        ConfigError: the record has a preamble that no recipe can have.
    """
    manifests = {url: record["corpora"][url] for url in _corpora(record["config"]) if url in record["corpora"]}
    talks = [url for url, manifest in manifests.items() if _talks(manifest)]
    if not talks:
        return Spoken(HarmonyStep().preamble(), None, (f"no corpus of the run has conversations; {_ASSUMED}",))
    main, told = talks[0], {url: _told(manifests[url]) for url in talks}
    others = [url for url in talks if told[url] not in (None, told[main])]
    notes = [f"{url} has another preamble than {main}, whose preamble the chat template begins with" for url in others]
    if told[main] is None:
        notes = [f"the manifest of {main} is of a version that does not record the preamble; {_ASSUMED}", *notes]
    step = conf.check(HarmonyStep, told[main] or {}, f"the preamble of {main} in the run's record")
    return Spoken(step.preamble(), main if told[main] else None, tuple(notes))


_ASSUMED = (
    "the chat template begins as the step `harmony` does by default, unless its arguments say otherwise "
    "(model_identity, developer_instructions, reasoning_effort, conversation_start_date, knowledge_cutoff)"
)


def _corpora(config: dict[str, Any]) -> Iterator[str]:
    """What the stages of a run train on, the most telling first."""
    for stage in reversed(config["stages"]):
        for arm in sorted(stage["arms"], key=lambda arm: -float(arm["share"])):
            data = {**config["data"], **stage["data"], **arm["data"]}
            yield str(data["corpus"])


def _talks(manifest: dict[str, Any]) -> bool:
    """Whether it may have conversations: a corpus that counts no kinds of spans may."""
    spans = manifest.get("distributions", {}).get("spans")
    return spans is None or any(tokens for kind, tokens in spans.items() if kind != "text")


def _told(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The fields of its preamble; None where it tells none."""
    found = manifest.get("findings", {}).get(PREAMBLES, {}).get("input_ids")
    return None if found is None else {key: value for key, value in found.items() if key in PREAMBLE_FIELDS}
