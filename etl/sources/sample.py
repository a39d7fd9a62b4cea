"""The embedded sample: real text that every installation already has, as files in the SYNTH schema.

Four sources, for demos and tests without a network: `stdlib` (functions of the standard library with their docstrings,
and the topics of Python's own help), `licences` (what the installed packages ship: many near duplicates by nature),
`dialogue` (questions and answers in 28 languages from the package chatterbot-corpus) and `synth` (rows written by hand
for this project, with malformed lines and duplicates on purpose). Source files are parsed, never imported.

The same installation gives the same bytes, and a file whose bytes would not change is not touched. About 4,500 rows and
6 MB of text; 3 to 6 s on one core, most of it `ast.parse` of the standard library.
"""

import ast
import email
import functools
import hashlib
import importlib.metadata
import importlib.resources
import importlib.util
import os
import re
import sys
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from filelock import FileLock

from etl.artefacts import cache_dir
from etl.errors import ConfigError

SYNTH: Final = pa.schema(
    [
        ("synth_id", pa.string()),
        ("language", pa.string()),
        ("exercise", pa.string()),
        ("model", pa.string()),
        ("query", pa.string()),
        ("query_seed_url", pa.string()),
        ("query_seed_text", pa.string()),
        ("additional_seed_url", pa.string()),
        ("seed_license", pa.string()),
        ("constraints", pa.string()),
        ("script", pa.string()),
        ("synthetic_reasoning", pa.string()),
        ("synthetic_answer", pa.string()),
        ("words", pa.int64()),
    ]
)
"""Native columns of SYNTH. Absent values are empty strings there."""

LANGUAGES: Final = {
    "bengali": "bn", "chinese": "zh", "dutch": "nl", "english": "en", "french": "fr", "german": "de", "hebrew": "he",
    "hindi": "hi", "hinglish": "hi-Latn", "indonesian": "id", "italian": "it", "japanese": "ja", "korean": "ko",
    "marathi": "mr", "oriya": "or", "persian": "fa", "portuguese": "pt", "russian": "ru", "spanish": "es",
    "swedish": "sv", "tamil": "ta", "telugu": "te", "thai": "th", "traditionalchinese": "zh-Hant", "turkish": "tr",
    "ukrainian": "uk", "urdu": "ur", "yoruba": "yo",
}  # fmt: skip
"""Folders of chatterbot-corpus and the language tags of what is in them."""

MAX_FUNCTIONS: Final = 2400
MAX_DIALOGUES: Final = 60
"""Question-answer pairs of one language; English has six times as many."""
FUNCTION_CHARS: Final = range(200, 4000)
LICENCE_CHARS: Final = range(400, 12000)
TOPIC_CHARS: Final = 2500
ROW_GROUP_ROWS: Final = 256

_SKIPPED_FOLDERS: Final = {
    "__pycache__", "dist-packages", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip
_LICENCE_NAME: Final = re.compile(r"(licen[cs]e|copying|notice)[^/]*$", re.IGNORECASE)

Row = dict[str, str | int]


def write_sample(folder: Path) -> dict[str, str]:
    """Write the four sources below `folder`, each in a folder of its own name.

    Returns:
        Source name to the glob of its files, as `sources.NAME.path` of a recipe takes it.

    Raises:
        ConfigError: this Python has no standard library sources, or chatterbot-corpus is not installed.
    """
    stdlib = [*_functions(), *_topics()]
    _write_parquet(folder / "stdlib", stdlib, num_files=2)
    _write_parquet(folder / "licences", list(_licences()), num_files=1)
    _write_parquet(folder / "dialogue", list(_dialogues()), num_files=1)
    for item in (importlib.resources.files("conf") / "sample").iterdir():
        if item.name.endswith(".jsonl"):
            _replace(folder / "synth" / item.name, item.read_bytes())
    return _globs(folder)


def _globs(folder: Path) -> dict[str, str]:
    suffixes = {"stdlib": "parquet", "licences": "parquet", "dialogue": "parquet", "synth": "jsonl"}
    return {name: str(folder / name / f"*.{suffix}") for name, suffix in suffixes.items()}


@functools.cache
def installation() -> str:
    """A digest of this file, of Python's version and of the packages that are installed: half a second."""
    packages = sorted(f"{item.metadata['Name']}=={item.version}" for item in importlib.metadata.distributions())
    parts = [Path(__file__).read_text("utf-8") if Path(__file__).exists() else "", sys.version, *packages]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def sample_place() -> Path:
    """Where the sample of this installation lies in the cache folder once it is written; it is whole with `_done`."""
    return cache_dir() / "sample" / installation()


def sample_folder() -> Path:
    """The sample of this installation in the cache folder, written on first use."""
    folder = sample_place()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "_done").exists():
            write_sample(folder)
            (folder / "_done").touch()
    return folder


def copy_sample(folder: Path) -> dict[str, str]:
    """As `write_sample`, from the cache folder: at once where the sample is in it."""
    made = sample_folder()
    for file in made.glob("*/*"):
        _replace(folder / file.relative_to(made), file.read_bytes())
    return _globs(folder)


def _row(synth_id: str, **columns: str) -> Row:
    """A row with the given columns; the others are empty, `words` is counted from the answer."""
    row: Row = {"synth_id": synth_id, "language": "en", "model": "human", **columns}
    row["words"] = len(columns["synthetic_answer"].split())
    return row


def _rank(text: str) -> int:
    """A place in an order that depends on nothing but the text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


# --- the standard library


@dataclass(frozen=True)
class _Function:
    module: str
    name: str
    """Dotted name inside the module."""
    node: ast.FunctionDef | ast.AsyncFunctionDef
    source: str
    """From the first decorator to the last line, without the indentation of its class."""
    doc: str

    @property
    def synth_id(self) -> str:
        return f"stdlib/{self.module}.{self.name}:{self.node.lineno}"


def _stdlib() -> Path:
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / "ast.py").is_file():
        raise ConfigError(
            f"this Python has no source code of its standard library in {root}, from which the sample is made; use "
            "a Python installed with it"
        )
    return root


def _functions() -> Iterator[Row]:
    """One row for each of MAX_FUNCTIONS documented functions and methods."""
    root = _stdlib()
    found: list[_Function] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS and name.isidentifier())
        for name in sorted(files):
            if name.endswith(".py"):
                path = Path(folder) / name
                module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
                found.extend(_functions_of(path, module))
    found.sort(key=lambda function: _rank(function.synth_id))
    for function in found[:MAX_FUNCTIONS]:
        yield _documented(function) if _rank(function.name) % 5 == 0 else _implemented(function)


def _functions_of(path: Path, module: str) -> Iterator[_Function]:
    with tokenize.open(path) as file:
        text = file.read()
    with warnings.catch_warnings():
        # Escapes that Python will refuse one day are the concern of who wrote the file.
        warnings.simplefilter("ignore")
        tree = ast.parse(text)
    lines = text.split("\n")
    for prefix, node in _definitions(tree.body, ""):
        doc = ast.get_docstring(node)
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        source = textwrap.dedent("\n".join(lines[first - 1 : node.end_lineno]))
        if doc and len(doc) >= 40 and len(node.body) > 1 and len(source) in FUNCTION_CHARS:
            yield _Function(module, prefix + node.name, node, source, doc)


def _definitions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions of a module and methods of its classes, not those inside a function."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix, node
        elif isinstance(node, ast.ClassDef):
            yield from _definitions(node.body, f"{prefix}{node.name}.")


def _implemented(function: _Function) -> Row:
    """Docstring to source."""
    signature = f"{function.name}({ast.unparse(function.node.args)})"
    queries = (
        f"Write `{signature}` of the Python module `{function.module}`.\n\n{function.doc}",
        f"Implement `{signature}` as in Python's `{function.module}`. Its documentation says:\n\n{function.doc}",
        f"How can `{function.module}.{signature}` be implemented? It should do this:\n\n{function.doc}",
    )
    return _row(
        function.synth_id,
        exercise="code",
        query=queries[_rank(function.synth_id) % len(queries)],
        query_seed_url=f"python:{function.module}",
        seed_license="PSF-2.0",
        synthetic_reasoning=_outline(function),
        synthetic_answer=f"```python\n{function.source}\n```",
    )


def _documented(function: _Function) -> Row:
    """Source to docstring."""
    lines = function.source.split("\n")
    doc = function.node.body[0]
    first = min([function.node.lineno, *(decorator.lineno for decorator in function.node.decorator_list)])
    assert doc.end_lineno is not None, "ast.parse always sets the end of a statement"
    bare = "\n".join([*lines[: doc.lineno - first], *lines[doc.end_lineno - first + 1 :]])
    return _row(
        function.synth_id,
        exercise="code",
        query=f"Write the docstring of this function of Python's `{function.module}`:\n\n```python\n{bare}\n```",
        query_seed_url=f"python:{function.module}",
        seed_license="PSF-2.0",
        synthetic_reasoning=_outline(function),
        synthetic_answer=function.doc,
    )


def _outline(function: _Function) -> str:
    """What a careful reader would note about a function: purpose, arguments, guards, loops, helpers, result."""
    nodes = list(ast.walk(function.node))
    notes = [f"Purpose of `{function.name}`: {_first_sentence(function.doc)}", _arguments(function.node)]
    for node in nodes:
        if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is not None:
            notes.append(f"- Guard: when {_short(node.test)}, raise {_short(node.body[-1].exc)}.")
        elif isinstance(node, ast.For | ast.AsyncFor):
            notes.append(f"- Loop: {_short(node.target)} runs over {_short(node.iter)}.")
        elif isinstance(node, ast.While):
            notes.append(f"- Loop while {_short(node.test)}.")
        elif isinstance(node, ast.Return) and node.value is not None:
            notes.append(f"- Result: {_short(node.value)}.")
    calls = dict.fromkeys(_short(node.func) for node in nodes if isinstance(node, ast.Call))
    if calls:
        notes.append(f"Helpers that it needs: {', '.join(list(calls)[:8])}.")
    return "\n".join(dict.fromkeys(notes[:14]))


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) ", paragraph)[0]


def _short(node: ast.expr) -> str:
    return f"`{textwrap.shorten(ast.unparse(node), 100, placeholder=' …')}`"


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    arguments = node.args
    names = [item.arg for item in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names = [name for name in names if name not in ("self", "cls")]
    required = len(names) - len(arguments.defaults) - sum(default is not None for default in arguments.kw_defaults)
    rest = [f"`*{arguments.vararg.arg}`"] if arguments.vararg else []
    rest += [f"`**{arguments.kwarg.arg}`"] if arguments.kwarg else []
    if not names and not rest:
        return "It takes no arguments."
    listed = ", ".join([*(f"`{name}`" for name in names), *rest])
    return f"Arguments: {listed}; {max(required, 0)} of them without a default."


def _topics() -> Iterator[Row]:
    """The topics of `help()`, cut at blank lines into pieces of about TOPIC_CHARS."""
    tree = ast.parse((_stdlib() / "pydoc_data" / "topics.py").read_text("utf-8"))
    [value] = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    for topic, text in sorted(ast.literal_eval(value).items()):
        title = text.strip().split("\n")[0].replace('"', "`")
        pieces = list(_pieces(text.strip()))
        for number, piece in enumerate(pieces, start=1):
            asked = f"What does the Python reference say about “{title}”?"
            if len(pieces) > 1:
                asked += f" Give part {number} of {len(pieces)}."
            yield _row(
                f"stdlib/topics/{topic}:{number}",
                exercise="memorization",
                query=asked,
                query_seed_url=f"python:help/{topic}",
                seed_license="PSF-2.0",
                synthetic_reasoning="Points to make:\n" + "\n".join(f"- {point}" for point in _points(piece)),
                synthetic_answer=piece,
            )


def _pieces(text: str) -> Iterator[str]:
    held: list[str] = []
    for paragraph in text.split("\n\n"):
        if held and sum(map(len, held)) + len(paragraph) > TOPIC_CHARS:
            yield "\n\n".join(held)
            held = []
        held.append(paragraph)
    yield "\n\n".join(held)


def _points(text: str) -> list[str]:
    sentences = (_first_sentence(paragraph) for paragraph in text.split("\n\n"))
    return [textwrap.shorten(sentence, 160, placeholder=" …") for sentence in sentences if len(sentence) > 30][:6]


# --- package licences


def _licences() -> Iterator[Row]:
    """One row for each licence file of each installed package, whole; very long and very short ones are left out."""
    for folder in sorted(Path(sysconfig.get_path("purelib")).glob("*.dist-info")):
        metadata = email.message_from_bytes((folder / "METADATA").read_bytes())
        for path in sorted(folder.rglob("*")):
            if path.is_file() and _LICENCE_NAME.search(path.name) and path.parent.name in ("licenses", folder.name):
                text = path.read_bytes().decode("utf-8", "replace").strip()
                if len(text) in LICENCE_CHARS:
                    yield _licence(metadata, path.name, text)


def _licence(metadata: Message, file: str, text: str) -> Row:
    name, version = metadata["Name"], metadata["Version"]
    expression = metadata["License-Expression"] or ""
    named = f"names the licence {expression}" if expression else "names no licence expression"
    return _row(
        f"licences/{name}/{file}",
        exercise="memorization",
        query=f"Under which terms may I use and pass on the Python package {name}?",
        query_seed_url=f"package:{name}/{file}",
        seed_license=expression,
        synthetic_reasoning=(
            f"The distribution {name} {version} ships a file {file}, and its metadata {named}. "
            "The text of that file is what counts, so it is quoted in full."
        ),
        synthetic_answer=text,
    )


# --- dialogues


def _dialogues() -> Iterator[Row]:
    """The longest question-answer pairs of each language, since one of three words says little about its language."""
    spec = importlib.util.find_spec("chatterbot_corpus")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the package chatterbot-corpus, which has the dialogues of the sample, is not installed; install the "
            "extra `demo`"
        )
    data = Path(spec.submodule_search_locations[0]) / "data"
    for folder, language in LANGUAGES.items():
        pairs = sorted(_pairs(data / folder), key=lambda pair: (-len(pair[1]) - len(pair[2]), pair[0]))
        for name, question, answer in pairs[: MAX_DIALOGUES * (6 if language == "en" else 1)]:
            yield _row(
                f"dialogue/{folder}/{name}",
                language=language,
                exercise="dialogue",
                query=question,
                query_seed_url=f"package:chatterbot-corpus/{folder}/{name.partition(':')[0]}",
                seed_license="BSD-3-Clause",
                synthetic_reasoning="",
                synthetic_answer=answer,
            )


def _pairs(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(file:conversation:turn, question, answer); each answer of a conversation goes with its question."""
    for path in sorted(folder.glob("*.yml")):
        conversations = yaml.load(path.read_bytes(), yaml.CSafeLoader)["conversations"]
        for number, turns in enumerate(conversations):
            if isinstance(turns, list) and turns and isinstance(turns[0], str):
                answers = (turn for turn in turns[1:] if isinstance(turn, str))
                for place, answer in enumerate(answers):
                    yield f"{path.stem}:{number}:{place}", turns[0], answer


# --- files


def _write_parquet(folder: Path, rows: list[Row], num_files: int) -> None:
    """Rows in the order of their ids' hashes, in files of about equal length."""
    rows = sorted(rows, key=lambda row: _rank(str(row["synth_id"])))
    size = -(-len(rows) // num_files)
    for number in range(num_files):
        table = _table(rows[number * size : (number + 1) * size])
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=ROW_GROUP_ROWS, compression="zstd")
        _replace(folder / f"part-{number:05d}.parquet", sink.getvalue().to_pybytes())


def _table(rows: Iterable[Row]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in SYNTH.names}
    for row in rows:
        for name, values in columns.items():
            values.append(row.get(name, ""))
    return pa.table(columns, schema=SYNTH)


def _replace(path: Path, data: bytes) -> None:
    """Write the file at once, unless it is there already with the same content."""
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
