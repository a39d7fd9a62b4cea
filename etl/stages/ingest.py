"""Ingest: raw files to PROMPT, with a quarantine of rows that could not be read.

The one stage that reads raw input, and one of the two that write row data. The quarantine rereads only the splits with
a bad row, so it costs nothing for a clean input.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from etl.arrow_types import hex_text
from etl.digests import digest_of
from etl.engine import Table
from etl.errors import DataError, SourceError
from etl.filters.blank import drop_blank
from etl.laws import Growth, With
from etl.rows import Rows
from etl.schema import PROMPT, QUARANTINE
from etl.sources.assemble.raw_rows import raw_rows
from etl.sources.files import (
    InputFile,
    Listed,
    cut,
    dataset_files,
    list_source,
    open_dataset,
    part_files,
    split_bytes_of,
)
from etl.sources.formats import pages
from etl.sources.hub import commits_of
from etl.sources.listing import told
from etl.sources.look import UNSEEN, Look, look
from etl.sources.prompts import INGEST
from etl.sources.raw import Tally
from etl.sources.row_groups import Limits
from etl.sources.spec import Shape, Source
from etl.stages import intake
from etl.stages.assemble import Found, assemble_sources, with_assembled
from etl.stages.context import Context
from etl.stages.intake import QUARANTINED, Intake
from etl.stages.raw_input import Raw
from etl.step import live
from etl.storage.build import Build, Chunk
from etl.storage.dataset import PLAN, Dataset, DatasetLike
from etl.storage.manifest import ASSEMBLED, Plan, sum_counts
from etl.storage.remote import Storage
from etl.storage.untrusted import read_object

INGEST_VERSION = 5
"""4 kept null fields of structs in messages and definitions of tools, read `[]` and lines that end in a CR without LF
as a bad row, and did not read a CSV file with a row above max_row_bytes. 3 had no tools, conversation_id,
expected_completion_tokens, bucket_rule and verdict, no content_type and call_id in its messages, and it kept blank
prompts and answers. 1 and 2 had no file and position. While it was 1, meta_json got another form for times in
nanoseconds, durations, nested bytes and whole numbers beyond 64 bits."""
QUARANTINE_VERSION = 2
"""1 had no source_example_id; `raw` of a line without a required value was the part that had been read."""
STEP = INGEST
LEFT_OUT: Final = "left_out"
"""Counts of the parts of files that are not rows, by source and kind."""
CONVERSATIONS: Final = "conversations"
"""Counts of rows that have a `conversation_id`, by source."""
UNPARSED: Final = "unparsed"
"""Counts of values that were not of their field's type, by source and field."""
TABLES: Final = {"ingest": "PROMPT", "quarantine": "QUARANTINE"}
"""The folders that are always written -> the name of the table; a source that is a table of a catalog adds
tables/NAME."""


@dataclass(frozen=True)
class WritePrompts:
    """One split of raw input to PROMPT rows with the fields of all sources; counts the bad ones."""

    raw: Raw

    def __call__(self, split: Any) -> Iterator[Chunk]:
        fields, tally = self.raw.fields, Tally()
        for name, batch, bad in self.raw.read(split, tally):
            batch = with_columns(batch, fields)
            if self.raw.sources[name].dataset is None:
                batch = drop_blank(batch, STEP, self.raw.shapes[name].has_answers)
            lost = sum_counts({f"{QUARANTINED}{row.reason}": 1} for row in bad)
            made = _of_turns(batch) if self.raw.shapes[name].rows == "turn" else {"made": 0}
            rows = batch.num_rows + len(bad) - made["made"] + made.get(ASSEMBLED, 0)
            counts = {"in": rows, **made, "kept": live(batch).true_count, **lost, **_dropped(batch)}
            where: dict[str, Any] = {"quarantined": {str(split["number"]): len(bad)}} if bad else {}
            if num_turns := batch.num_rows - batch.column("conversation_id").null_count:
                where[CONVERSATIONS] = {name: num_turns}
            yield Chunk(batch, rows, {name: {STEP: counts}}, where)
        counted = {LEFT_OUT: tally.left_out, UNPARSED: tally.unparsed}
        found = {what: {name: dict(counts)} for what, counts in counted.items() if counts}
        if found:
            yield Chunk(None, distributions=found)


@dataclass(frozen=True)
class WriteQuarantine:
    """The bad rows of one split, with file, position, reason and original text."""

    raw: Raw

    def __call__(self, split: Any) -> Iterator[Chunk]:
        for name, _, bad in self.raw.read(split):
            rows = [
                {
                    "source": name,
                    "source_example_id": row.example_id,
                    "file": row.file,
                    "position": row.position,
                    "reason": row.reason,
                    "detail": row.detail,
                    "raw": row.raw,
                }
                for row in bad
            ]
            counts = {"in": len(bad), "made": 0, "kept": len(bad)}
            accounting = {name: {"quarantine": counts}} if bad else {}
            yield Chunk(pa.RecordBatch.from_pylist(rows, schema=QUARANTINE), len(bad), accounting)


def _of_turns(batch: pa.RecordBatch) -> dict[str, int]:
    """The number of rows that are turns of a conversation, and of the conversations that they come from."""
    conversation = batch.column("conversation_id")
    num_whole = pc.equal(conversation, hex_text(batch.column("id"))).true_count
    return {"made": len(batch) - conversation.null_count, ASSEMBLED: num_whole}


def _records_left_out(kinds: dict[str, int]) -> list[str]:
    """The parts that a format leaves out by itself, in words."""
    shown = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
    return [f"records left out: {shown}"] * bool(kinds)


def _is_any(_: Any) -> bool:
    return True


def with_columns(batch: pa.RecordBatch, columns: pa.Schema) -> pa.RecordBatch:
    """PROMPT rows of a source with these columns after those of PROMPT, null if the source has no such field."""
    found = [
        batch.column(field.name) if field.name in batch.schema.names else pa.nulls(batch.num_rows, field.type)
        for field in columns
    ]
    schema = pa.schema([*PROMPT, *columns])
    return pa.RecordBatch.from_arrays([*batch.columns[: len(PROMPT)], *found], schema=schema)


def _dropped(batch: pa.RecordBatch) -> dict[str, int]:
    """Rows with a verdict, by reason."""
    reasons = pc.struct_field(batch.column("verdict"), "reason").drop_null()
    return {item["values"]: item["counts"] for item in pc.value_counts(reasons).to_pylist()}


def ingest(context: Context, sources: dict[str, Source], max_bad_fraction: float, max_row_bytes: int) -> Rows:
    """Write DIR/ingest and, for rows that could not be read, DIR/quarantine.

    Args:
        context: of the run.
        sources: of the recipe, by name.
        max_bad_fraction: share of a source's rows that may be quarantined before the run fails.
        max_row_bytes: length of a row above which it is quarantined.

    Raises:
        SourceError: an input is absent or damaged, a source gives no row, or too many of its rows were quarantined.
        ConfigError: the description of a data set is wrong.
    """
    storage = context.storage
    landed = {name: _land(context, name, source) for name, source in sources.items() if source.table is not None}
    datasets = {name: open_dataset(name, one, storage) for name, one in sources.items() if one.dataset is not None}
    listed = {
        name: _listed(name, source, {**landed, **datasets}.get(name), storage) for name, source in sources.items()
    }
    for name, found in listed.items():
        for line in (*commits_of(sources[name].patterns), *told(found.left_out)):
            context.tell(name, line, always=True)
    given = {name: one.files for name, one in listed.items()}
    limits = Limits(max_row_bytes, context.cutting.max_row_group_bytes)
    raw = Raw.of(sources, {name: source.shape() for name, source in sources.items()}, given, storage, limits)
    identity = {
        name: {
            "shape": shape.fingerprinted(),
            **sources[name].reading(),
            **_identity(sources[name], given[name], shape, datasets.get(name)),
        }
        for name, shape in raw.shapes.items()
    }
    split_bytes = context.cutting.split_bytes or split_bytes_of(sum(map(_bytes, given.values())))
    shapes = raw.shapes
    assembled = assemble_sources(context, raw, Found(given, identity, landed, split_bytes))
    raw, files = with_assembled(raw, given, assembled)
    identity |= {name: {"shape": identity[name]["shape"]} for name in assembled}
    # Cut only when a task is to be planned: it may take a look at each file.
    splits = (
        raw.to_plan(number, split)
        for number, split in enumerate(
            split
            for name, source in raw.sources.items()
            for split in cut(name, source, files[name], split_bytes, storage)
        )
    )
    fields = raw.fields
    # In their order: the columns of the rows.
    columns = {"fields": fields.names} if fields.names else {}
    semantic = {"version": INGEST_VERSION, "max_row_bytes": max_row_bytes, "sources": identity, **columns}
    inherited = {name: {STEP: {"in": 0, "made": 0, "kept": 0}, **_account(assembled.get(name))} for name in sources}
    inputs = (*(dataset for name, dataset in landed.items() if name not in assembled), *assembled.values())
    job = context.job("ingest", "PROMPT", pa.schema([*PROMPT, *fields]), semantic, inputs)
    is_on_hub = any(commits_of(source.patterns) for source in sources.values())
    current = Build(job).committed() if is_on_hub else None
    looks = {
        name: UNSEEN
        if name in landed or name in datasets
        else _looked(source, shapes[name], given[name], storage, _unused(current, name))
        for name, source in sources.items()
    }
    findings = {
        "inputs": {
            name: _findings(sources[name], one, looks[name]) for name, one in listed.items() if name not in landed
        }
    }
    job = (
        job.with_inherited(inherited)
        .with_findings(findings)
        .with_findings_of(partial(_with_unparsed, findings))
        .with_pieces(raw.is_piece(files))
    )

    def committed(ingested: Dataset) -> None:
        # A plan also looks at old rows, which a run would make anew: their counts do not matter.
        is_current = ingested.manifest.fingerprint == job.fingerprint
        quarantine = _quarantine(context, raw, ingested, job.is_piece if is_current else _is_any)
        if not is_current:
            return
        unparsed = ingested.manifest.counts(UNPARSED, 2)
        intakes = {
            name: Intake.of(name, ingested.manifest.accounting[name], unparsed.get(name, {})) for name in sources
        }
        sizes = {name: _size(one.files) for name, one in listed.items()}
        for name, one in intakes.items():
            notes = intake.notes_on(sources[name], raw.shapes[name], looks[name].unused)
            notes += _records_left_out(ingested.manifest.counts(LEFT_OUT, levels=2).get(name, {}))
            context.tell(name, intake.line(one, sizes[name], notes), always=True)
        for name, one in intakes.items():
            allowed = intake.Limits(sources[name].may_be_empty, max_bad_fraction)
            intake.check(one, allowed, quarantine, sizes[name], looks[name])

    rows = Rows.of(context.map(job, splits, WritePrompts(raw), then=committed), fields)
    if not all(seen.is_sound for seen in looks.values()):
        _settle(context, looks)
    return rows


def _account(assembled: Dataset | None) -> dict[str, dict[str, int]]:
    """The account of the rows assembled for a source."""
    if assembled is None:
        return {}
    (steps,) = assembled.manifest.accounting.values()
    return steps


def _settle(context: Context, looks: dict[str, Look]) -> None:
    """Read the rows now and not together with the next stage's work, which may be in vain.

    Raises:
        SourceError: the error of reading, with a remedy for files that lack columns.
    """
    try:
        context.engine.settle()
    except SourceError as error:
        near = [seen.near for seen in looks.values() if seen.lacks]
        if not near or near[0] in str(error):
            raise
        raise SourceError(f"{error}; {near[0]}") from error


def _unused(current: Dataset | None, name: str) -> list[str] | None:
    """The columns that the description of a source never names, from its committed rows; None if unknown."""
    inputs = {} if current is None else current.manifest.findings_by_column("inputs")
    found = inputs.get(name, {}).get("columns_not_used")
    return found if isinstance(found, list) and all(isinstance(column, str) for column in found) else None


def _looked(source: Source, shape: Shape, files: list[InputFile], storage: Storage, unused: list[str] | None) -> Look:
    """A look at the files; for committed rows from the hub, the findings of the first look, without a request."""
    if unused is not None and commits_of(source.patterns):
        return replace(UNSEEN, unused=tuple(unused))
    return look(source, shape, files, storage)


def _listed(name: str, source: Source, landed: Dataset | None, storage: Storage) -> Listed:
    if landed is None:
        return list_source(name, source, storage)
    return Listed(dataset_files(landed) if source.table is None else part_files(landed, source.table), {})


def _land(context: Context, name: str, source: Source) -> Dataset:
    """The columns that are read of a table, as a dataset."""
    assert source.table is not None
    shape = source.shape()
    columns = shape.columns if shape.assemble is None else raw_rows(shape).columns
    return context.engine.land(Table(name, source.table, columns), context.output / f"tables/{name}")


def _bytes(files: list[InputFile]) -> int:
    return sum(file.bytes for file in files)


def _size(files: list[InputFile]) -> str:
    """`2 files, 1,024 bytes`."""
    return f"{len(files):,} file{'s' * (len(files) != 1)}, {_bytes(files):,} bytes"


def _findings(source: Source, listed: Listed, seen: Look) -> dict[str, Any]:
    """For the manifest: what was found for one source, and the part of it that is not read."""
    commits = commits_of(source.patterns)
    return {
        **({"hub": commits} if commits else {}),
        **({"order": [file.relative for file in listed.files]} if source.shuffle is not None else {}),
        "files": len(listed.files),
        "bytes": _bytes(listed.files),
        "left_out": listed.left_out,
        "columns_not_used": list(seen.unused),
    }


def _with_unparsed(findings: dict[str, Any], counts: dict[str, Any]) -> dict[str, Any]:
    """The findings with the values that did not parse, by source and field."""
    inputs = dict(findings["inputs"])
    for name, unparsed in counts.get(UNPARSED, {}).items():
        inputs[name] = {**inputs.get(name, {}), "unparsed": unparsed}
    return {**findings, "inputs": inputs}


def _identity(source: Source, files: list[InputFile], shape: Shape, dataset: Dataset | None) -> dict[str, Any]:
    """Everything that decides the rows of a source, besides its shape; a landed table is an input of the job."""
    if source.table is not None:
        return {}
    if dataset is not None:
        return {"dataset": dataset.manifest.content_digest}
    commits = commits_of(source.patterns)
    has_pages = any(source.format_of(file.relative) == "warc" for file in files)
    listing = [[file.relative, file.bytes, file.etag] for file in files]
    columns = shape.columns if shape.assemble is None else raw_rows(shape).columns
    of_folders = {key for file in files for key in file.partitions}.intersection(columns)
    return {
        "files": len(files),
        "bytes": _bytes(files),
        "listing": digest_of(listing),
        **({"hub": commits} if commits else {}),
        **({"packages": pages.versions(source.html)} if has_pages else {}),
        **({"columns_of_folders": sorted(of_folders)} if of_folders else {}),
    }


def _quarantine(context: Context, raw: Raw, ingested: Dataset, is_piece: Callable[[Any], bool]) -> DatasetLike:
    bad = ingested.manifest.counts("quarantined")
    identity = {"ingest": ingested.manifest.fingerprint, "rows": sum(bad.values())}
    grows = Growth(With.INPUT, work=With.INPUT)
    job = context.job("quarantine", "QUARANTINE", QUARANTINE, identity, version=QUARANTINE_VERSION, grows=grows)
    job = job.with_pieces(is_piece)
    # The numbers are those of the plan with which ingest was committed; this run may cut its input in another way.
    remedy = f"remove {ingested.folder} and run again"
    plan = read_object(ingested.folder / PLAN, Plan, remedy)
    if bad and not all(map(is_piece, plan.splits)):
        raise DataError(f"{ingested.folder / PLAN} has splits that are no pieces of the input; {remedy}")
    chosen = [split for split in plan.splits if bad and str(split["number"]) in bad]
    return context.map(job, chosen, WriteQuarantine(raw))
