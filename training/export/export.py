"""Exports a run's newest checkpoint as a folder that transformers loads, with a manifest of its training data.

    TARGET/model.safetensors, or model-00001-of-… and an index above 5 GB    bfloat16, names of the transformers class
    TARGET/config.json, generation_config.json
    TARGET/tokenizer.json, tokenizer_config.json, special_tokens_map.json, chat_template.jinja
    TARGET/README.md, LICENSES.md                                           model card; licences of the data
    TARGET/stillhouse_manifest.json                                         data and sampling; written last

The weights are the float32 masters, adapters added, rounded to bfloat16 once. No DeepSpeed engine and no accelerator is
needed. On a local disk the folder is made beside its place and renamed; on an object store the manifest is removed
first and comes last. The same checkpoint gives the same bytes. Needs 12 bytes a trained parameter of scratch disk,
beside a local target or else in the system's temporary folder, and about 10 bytes a parameter of memory.
"""

import copy
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from transformers import GenerationConfig
from transformers.utils import logging

from etl import conf
from etl.console import warn
from etl.errors import ConfigError
from etl.harmony.vocabulary import VOCAB_SIZE
from etl.storage.location import Location
from etl.storage.untrusted import read_object
from training.checkpoint import store, universal
from training.checkpoint.store import CheckpointManifest
from training.data.stream.decisions import Record
from training.export import harmony_tokenizer
from training.export.card import card_files
from training.export.preamble import Spoken, spoken
from training.models.config import ModelConfig
from training.models.factory import Student, build_student, export_model, export_state
from training.models.tokenizer import check_tokenizer
from training.record import ledger, run_record

MANIFEST: Final = "stillhouse_manifest.json"
SHARD_SIZE: Final = "5GB"
HARMONY: Final = "o200k_harmony"
"""The tokenizer of the corpora."""
_STUDENT: Final = "student."
"""Before each name of the student in a checkpoint."""
_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class TrainedRun:
    """A checkpoint and the run that it is of."""

    output: Location
    folder: Location
    """Of the checkpoint."""
    manifest: CheckpointManifest
    record: dict[str, Any]
    """training/record/run_record.py's."""

    @classmethod
    def of(cls, url: str) -> "TrainedRun":
        """From a run's output (its newest complete checkpoint), or from a checkpoint in a run's output.

        Raises:
            ConfigError: there is no run or no complete checkpoint.
        """
        given = Location.of(url)
        if (given / store.MANIFEST).exists():
            output = Location.of(given.url.rsplit("/", 2)[0])
            return cls(output, given, store.read_manifest(given), run_record.read(output))
        record = run_record.read(given)
        root = Location.of(record["config"]["checkpoint"]["root"] or f"{given}/checkpoints")
        tags = store.complete_tags(root)
        if not tags:
            raise ConfigError(f"there is no complete checkpoint in {root}; train first")
        folder = root / tags[-1]
        return cls(given, folder, store.read_manifest(folder), record)

    def files(self, scratch: Path) -> Path:
        """A local folder with the files of all ranks, each one checked."""
        files = [file for receipt in self.manifest.receipts for file in receipt.files]
        if self.folder.is_local:
            for file in files:
                store.check(self.folder / file.name, file)
            return Path(self.folder.path)
        scratch.mkdir()
        for file in files:
            store.download(self.folder / file.name, file, scratch / file.name)
        return scratch


def export(source: str, target: str, allow_code: bool = False) -> str:
    """Write the newest complete checkpoint of a run for transformers.

    Args:
        source: folder or URL of a run's output, or of one checkpoint in it.
        target: folder or URL; an earlier export there is replaced.
        allow_code: whether the factory of the student, which the run's files name, may be code from outside the
            package.

    Returns:
        The URL of the target.

    Raises:
        ConfigError: there is no complete checkpoint, the target contains something else, the student is not of this
            package and allow_code is not given, or the run's record has a preamble that no recipe can have.
        DataError: the checkpoint is damaged.
    """
    found, place = TrainedRun.of(source), Location.of(target)
    _check_target(place)
    with _scratch(place) as scratch:
        folder = scratch / "export"
        folder.mkdir()
        config = _model_config(found, allow_code)
        student = _student(config, found.record["config"]["seed"])
        _write_model(student, _weights(found, student, scratch), config, folder)
        how = spoken(found.record) if _speaks_harmony(student) else None
        tokenizer = _write_tokenizer(config, folder, how)
        manifest = _manifest(found, tokenizer, how if tokenizer == HARMONY else None)
        for name, data in card_files(manifest, student.hf_class is not None).items():
            (folder / name).write_bytes(data)
        (folder / MANIFEST).write_bytes(_json(manifest))
        for note in manifest["preamble"]["notes"] if manifest["preamble"] else ():
            warn(note)
        for path in folder.iterdir():
            # safetensors makes files that nobody else may read.
            path.chmod((folder / MANIFEST).stat().st_mode)
        _publish(folder, place)
    return place.url


def _check_target(target: Location) -> None:
    is_file = target.is_local and Path(target.path).is_file()
    occupied = is_file or next(target.walk(), None) is not None
    if occupied and not (target / MANIFEST).exists():
        raise ConfigError(f"{target} contains something that is not an export; give an empty folder")


@contextmanager
def _scratch(target: Location) -> Iterator[Path]:
    """A folder on the target's disk where that is local, gone at the end."""
    parent = None
    if target.is_local:
        parent = Path(target.path).parent
    with target.explained("write"):
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=parent)
    with made as folder:
        yield Path(folder)


# --- weights


def _model_config(found: TrainedRun, allow_code: bool) -> ModelConfig:
    """What the run's files say of its student.

    Raises:
        ConfigError: it is not the section of a model, or names code that is not allowed.
    """
    return conf.check(ModelConfig, found.manifest.identity, f"the student of {found.folder}", allow_code)


def _student(config: ModelConfig, seed: int) -> Student:
    """The run's student with initial weights, for its names and its configuration."""
    return build_student(config.model_copy(update={"compile": False, "gradient_checkpointing": False}), seed)


def _weights(found: TrainedRun, student: Student, scratch: Path) -> dict[str, torch.Tensor]:
    """Whole weights by name in the student, float32 where they were trained."""
    files, converted = found.files(scratch / "files"), scratch / "universal"
    universal.convert(files, found.manifest.layout, converted)
    index = json.loads((converted / universal.INDEX).read_text())
    weights = {}
    for name, entry in index["trained"].items():
        weights[name] = _tensor(converted / entry["file"], universal.MASTER).reshape(entry["shape"])
    for name, file in index["other"].items():
        weights[name] = _tensor(converted / file, "value")
    shutil.rmtree(converted)
    own = {name.removeprefix(_STUDENT): value for name, value in weights.items() if name.startswith(_STUDENT)}
    # A parameter with two names is stored under the first of them.
    first: dict[int, str] = {}
    for name, parameter in student.named_parameters(remove_duplicate=False):
        own.setdefault(name, own[first.setdefault(id(parameter), name)])
    return own


def _tensor(file: Path, key: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(key)
        return tensor


def _write_model(student: Student, weights: dict[str, torch.Tensor], config: ModelConfig, folder: Path) -> None:
    merged = export_state(student, weights)
    if student.hf_class is None:
        rounded = {name: _rounded(value) for name, value in merged.items()}
        save_torch_state_dict(rounded, folder, max_shard_size=SHARD_SIZE)
        (folder / "config.json").write_bytes(_json({"factory": config.factory, "params": config.params}))
        return
    model = export_model(student, weights)
    for name, parameter in model.named_parameters():
        parameter.data = _rounded(merged[name])
    model.config = copy.deepcopy(model.config)
    if _speaks_harmony(student):
        given = harmony_tokenizer.generation_config()
        model.generation_config = GenerationConfig(**given)
        for key, value in given.items():
            setattr(model.config, key, value)
    logging.disable_progress_bar()
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)


def _rounded(value: torch.Tensor) -> torch.Tensor:
    return value.bfloat16().contiguous() if value.is_floating_point() else value.contiguous()


# --- tokenizer


def _speaks_harmony(student: Student) -> bool:
    """Whether its head has room for every id of the vocabulary that Harmony uses."""
    return len(student.lm_head.weight) >= VOCAB_SIZE


def _write_tokenizer(config: ModelConfig, folder: Path, how: Spoken | None) -> str | None:
    """The tokenizer of the model: which one it is; None where none is known. `how` is of a student of Harmony."""
    own = config.params.get("weights") or config.params.get("parent", {}).get("weights")
    if own is not None and _has_another_tokenizer(Path(own).expanduser()):
        for name in _TOKENIZER_FILES:
            if (Path(own).expanduser() / name).is_file():
                shutil.copyfile(Path(own).expanduser() / name, folder / name)
        return "that of the weights that the run began with"
    if how is None:
        return None
    for name, data in harmony_tokenizer.tokenizer_files(how.preamble).items():
        (folder / name).write_bytes(data)
    return HARMONY


def _has_another_tokenizer(folder: Path) -> bool:
    if not (folder / "tokenizer.json").is_file():
        return False
    try:
        check_tokenizer(folder)
    except ConfigError:
        return True
    return False


# --- what it was trained on


def _manifest(found: TrainedRun, tokenizer: str | None, how: Spoken | None) -> dict[str, Any]:
    preamble = None if how is None else {"corpus": how.corpus, "notes": how.notes, **asdict(how.preamble)}
    payload = dict(found.manifest.payload)
    rows = payload.pop("ledger")
    data = (found.folder / store.MANIFEST).read()
    return {
        "version": 1,
        "stillhouse": version("stillhouse"),
        "checkpoint": {
            "name": found.folder.name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "step": found.manifest.step,
            "held_out_loss": found.manifest.score,
        },
        "model": found.manifest.identity,
        "tokenizer": tokenizer,
        "preamble": preamble,
        "seed": found.record["config"]["seed"],
        "tokens": payload["tokens"],
        "supervised_tokens": payload["supervised_tokens"],
        "state": payload,
        "config": found.record["config"],
        # A run of an earlier version has none.
        "code": found.record.get("code", {}),
        "corpora": found.record["corpora"],
        "teacher_tables": found.record["teacher_tables"],
        "decisions": _decisions(found.output / "decisions"),
        "ledger": {"total": {name: sum(row[name] for row in rows) for name in ledger.COUNTS}, "rows": rows},
        "licenses": _licenses(rows),
    }


def _decisions(folder: Location) -> dict[str, list[Any]]:
    """The records of each stream, by stage/arm, in the order of their segments."""
    streams: dict[str, list[Any]] = {}
    for path, _ in folder.walk():
        stream, _, name = path.rpartition("/")
        if name.endswith(".json"):
            record = read_object(folder / path, Record, "restore the old one, or remove the log to export without it")
            streams.setdefault(stream, []).append(record.model_dump(mode="json"))
    return streams


def _licenses(rows: ledger.Rows) -> dict[str, int]:
    """Trained tokens by licence; "unknown" where the corpus does not say."""
    tokens: dict[str, int] = {}
    for row in rows:
        name = row["license"] or "unknown"
        tokens[name] = tokens.get(name, 0) + row["tokens"]
    return tokens


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


# --- to its place


def _publish(folder: Path, target: Location) -> None:
    if target.is_local:
        place, old = Path(target.path), folder.with_name("replaced")
        if place.exists():
            place.rename(old)
        folder.rename(place)
        return
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    (target / MANIFEST).remove()
    target.remove_all([path for path, _ in target.walk() if path not in names])
    for name in sorted(names - {MANIFEST}):
        (target / name).upload(folder / name)
    (target / MANIFEST).upload(folder / MANIFEST)
