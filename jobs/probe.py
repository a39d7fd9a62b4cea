"""`stillhouse probe`: shows what a path contains, as text or JSON, and the YAML that reads it.

etl/sources/probe.py does the work; this file formats the result. Values and texts are truncated to the width of the
terminal, YAML never is.
"""

import json
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import yaml

from etl.console import note, report
from etl.errors import ConfigError
from etl.sources.files import InputFile
from etl.sources.listing import told
from etl.sources.probe import NAME, Check, Lost, Probe
from etl.sources.probe import probe as look
from etl.storage.dataset import MANIFEST
from etl.terminal import one_line, shown

DESCRIPTION: Final = f"{NAME}.yaml"
RECIPE: Final = "recipe.yaml"
_STAGES: Final = {"prompts": ["dedup"]}
"""The stage to stop at for sources without answers, which a corpus cannot hold."""
_ALL_STAGES: Final = ["dedup", "tokenize", "layout"]
_BAD_FRACTION: Final = 0.05
"""Share of rejected rows above which the recipe must raise `max_bad_fraction`."""
_MAX_LISTED: Final = 20
_TEXT_CHARS: Final = 600
_FEWEST_CHARS: Final = 40


def probe(path: str, rows: int, output: Path | None, as_json: bool) -> None:
    """Print what a path contains, and write the YAML if an output is given.

    Args:
        path: as in a source.
        rows: number of rows to read, to see which would be rejected.
        output: folder for the two files.
        as_json: print one JSON object instead of text.

    Raises:
        SourceError: no file is found, or no description fits.
        ConfigError: a file that would be written exists.
    """
    targets = _targets(output)
    found = look(path, rows)
    texts = {DESCRIPTION: yaml_of(found.best.tree)} if found.spec is None else {}
    spec = found.spec or str(targets[DESCRIPTION] if output is not None else f"./{DESCRIPTION}")
    texts[RECIPE] = yaml_of(recipe_of(found, spec, path))
    if as_json:
        report(json.dumps(as_tree(found, texts), ensure_ascii=False))
    else:
        for line in lines_of(found, texts, shutil.get_terminal_size((120, 24)).columns):
            report(line)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            targets[name].write_text(text, "utf-8")
            note(f"wrote {targets[name]}")
        note(f"next: stillhouse run {shlex.quote(str(targets[RECIPE]))} --engine local")


def _targets(output: Path | None) -> dict[str, Path]:
    if output is None:
        return {}
    targets = {name: output.absolute() / name for name in (DESCRIPTION, RECIPE)}
    there = [str(target) for target in targets.values() if target.exists()]
    if there:
        raise ConfigError(f"--output={output}: {' and '.join(there)} exist; remove them or give another folder")
    return targets


# --- YAML -------------------------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """YAML with lists of plain values in one line, and line ends as `\\n`."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if "\n" in data else None)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        is_plain = all(isinstance(value, str | int | float) for value in sequence)
        return super().represent_sequence(tag, sequence, flow_style=is_plain)


_Dumper.add_representer(str, _Dumper.represent_str)


def yaml_of(tree: dict[str, Any]) -> str:
    """A tree as YAML, with its keys in order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 20)


def recipe_of(found: Probe, spec: str, path: str) -> dict[str, Any]:
    """A recipe for what was found, with the stages that its rows can pass."""
    stages = _ALL_STAGES if found.best.shape.has_answers else _STAGES["prompts"]
    bad = found.check.num_quarantined / max(1, found.check.rows)
    return {
        "name": NAME,
        "output": f"./{NAME}_corpus" if "tokenize" in stages else f"./{NAME}_prompts",
        "sources": {NAME: {"spec": spec, "path": _path_of(found, path), **found.source.reading()}},
        **({"max_bad_fraction": min(1.0, round(2 * bad, 2))} if bad > _BAD_FRACTION else {}),
        "stages": stages,
    }


def _path_of(found: Probe, path: str) -> str | list[str]:
    """The absolute path; if the description does not fit all files, the list of those that it fits."""
    if (found.others or (found.source.text_rows and found.left_out)) and len(found.chosen) <= _MAX_LISTED:
        urls = [file.url for file in found.chosen]
        return urls[0] if len(urls) == 1 else urls
    return path if "://" in path or path.startswith("sample:") else str(Path(path).expanduser().absolute())


# --- lines ------------------------------------------------------------------------------------------------------------


def lines_of(found: Probe, texts: dict[str, str], width: int) -> Iterator[str]:
    """Everything to print."""
    yield from _about_files(found)
    yield ""
    yield from _about_columns(found, width)
    yield ""
    ships = f", matching the shipped description '{found.spec}'" if found.spec else ""
    yield f"fits: {found.best.reason}{ships}"
    for fit in found.fits[1:]:
        if fit.fits and fit.shape.has_answers:
            yield f"also: {fit.reason}"
    yield ""
    yield from _about_rows(found.check, width)
    yield from _about_losses(found, width)
    for name, text in texts.items():
        yield ""
        yield f"# {name}"
        yield from text.rstrip("\n").split("\n")


def _about_files(found: Probe) -> Iterator[str]:
    for kind, compression in found.formats:
        of_it = [file for file in found.files if found.format_of(file) == (kind, compression)]
        packed = f", {compression}" if compression else ""
        yield f"{kind}{packed}: {_files(of_it)}, {sum(file.bytes for file in of_it):,} bytes"
    yield from told(found.left_out)
    if MANIFEST in {name for what in found.left_out.values() for name in what["names"]}:
        yield "a committed dataset: `dataset: PATH`, without `spec` and `path`, reads it directly"
    for reason in found.damage:
        yield f"damaged: {reason}"
    for name, reason in found.others.items():
        yield f"not described below: {name} ({reason})"


def _files(files: Sequence[InputFile]) -> str:
    if len(files) == 1:
        return files[0].relative
    return f"{len(files):,} files ({files[0].relative}, …)"


def _about_columns(found: Probe, width: int) -> Iterator[str]:
    yield f"columns of {found.num_glanced:,} rows"
    names = [one_line(column.name) for column in found.columns]
    wide = max(map(len, names), default=0)
    kinds = [_cut(column.kind, _FEWEST_CHARS) for column in found.columns]
    wide_kind = max(map(len, kinds), default=0)
    for name, kind, column in zip(names, kinds, found.columns, strict=True):
        yield _cut(f"  {name:<{wide}}  {kind:<{wide_kind}}  {shown(column.example)}", width)
    for name, kind in found.without_json.items():
        yield f"  {name:<{wide}}  {kind}, which cannot be read"


def _about_rows(check: Check, width: int) -> Iterator[str]:
    for row in check.shown:
        yield f"{row['file']}, position {row['position']}"
        for said in row["messages"]:
            who = " ".join(filter(None, (said["role"], said["channel"], said["recipient"])))
            text = _cut(" ".join(said["content"].split()), min(_TEXT_CHARS, max(_FEWEST_CHARS, 3 * width)))
            yield f"  {who:<20}  {text}"
        if row["tools"]:
            yield f"  {'tools':<20}  {_cut(row['tools'], width)}"
    yield ""


def _about_losses(found: Probe, width: int) -> Iterator[str]:
    check = found.check
    yield f"of the first {check.rows:,} rows {check.kept:,} are kept"
    for lost in check.quarantined:
        yield f"  {lost.rows:,} rejected: {lost.reason}, first at {_place(lost)}: {_cut(lost.detail, width)}"
    for lost in check.blank:
        yield f"  {lost.rows:,} left out: {lost.reason}, first at {_place(lost)}"
    if not found.best.shape.has_answers:
        yield "  no answers: the rows are prompts, for a teacher or for RL"
    rest = found.best.tree.get("meta", [])
    if rest:
        yield f"kept only in meta_json: {', '.join(rest)}"
    unused = sorted({column.name for column in found.columns} - found.used_columns)
    yield f"columns not used: {', '.join(unused) or 'none'}"


def _place(lost: Lost) -> str:
    return f"{lost.file}, position {lost.position:,}"


def _cut(text: str, chars: int) -> str:
    text = one_line(text)
    return text if len(text) <= chars else text[: chars - 1] + "…"


def as_tree(found: Probe, texts: dict[str, str]) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "files": [
            {"path": file.relative, "format": found.format_of(file)[0], "bytes": file.bytes} for file in found.files
        ],
        "left_out": found.left_out,
        "columns": [{"name": column.name, "type": column.kind} for column in found.columns],
        "fits": [{"shape": fit.tree["shape"], "kept": fit.kept, "rows": fit.rows} for fit in found.fits],
        "rows": found.check.rows,
        "kept": found.check.kept,
        "rejected": [asdict(lost) for lost in found.check.quarantined],
        "blank": [asdict(lost) for lost in found.check.blank],
        "yaml": texts,
    }
