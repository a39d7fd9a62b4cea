"""Finds rows that hold items of benchmarks, and drops them or tags them with benchmark, item and matched span.

What is compared. A benchmark's questions are looked for in a row's prompt and in its answer, its reference answers only
in a row's answer. The prompt is everything that the user says. The answer is everything that the assistant says
(reasoning included), or a whole raw document. A row is hit by an item

    ngram_N   when it holds at least `min_ratio` of the item's distinct word N-grams, anywhere in it;
              an item of fewer than N words is one n-gram of all its words
    numbers   when one number is changed: when it holds at least `min_ratio` of the item's distinct N-grams, every
              number read as the same, and all of the item's numbers but one between the same words
    near      when the sets of word n-grams of the item and of the whole field have at least that Jaccard similarity

All are exact (`etl.filters.ngram_index`): recall by these definitions is 1, nothing is sampled or estimated, and only
two different n-grams with one 64-bit hash could add a hit. An item worth fewer than `min_words` words only hits a
prompt or answer that says nothing else, and never hits as a reference answer.

In scripts without spaces each character is a word, whatever is next to it; an ideograph is worth 0.7 words, a letter
of kana, Thai, Lao, Khmer or Burmese 0.25 (`etl.filters.ngram_words`).

The index is one memory-mapped file in the cache folder, named by the digests of the benchmark files and by everything
else that decides its content. The driver builds it when it checks the recipe, a worker on another machine when it opens
the step: once a node, under a lock. A row without a hit costs only the kernels, about 70 MB of text a CPU-second.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock
from pydantic import Field, model_validator

from etl.arrays import I64
from etl.artefacts import LOCK_TIMEOUT_S, cache_dir
from etl.config import Config
from etl.digests import canonical_json, file_sha256
from etl.errors import ConfigError
from etl.filters.benchmarks import Benchmark, benchmark_files, read_items
from etl.filters.ngram_index import (
    ANSWER,
    INDEX_VERSION,
    LONGEST_NGRAM,
    QUESTION,
    Hits,
    Index,
    Items,
    Rule,
    build,
    characters_before,
    write,
)
from etl.filters.ngram_scan import Tables
from etl.filters.ngram_words import Words
from etl.messages import instruction_text, response_text
from etl.step import BatchFn, Step, append, drop, live
from etl.text import UNICODE_VERSION

HIT: Final = pa.struct(
    [
        ("benchmark", pa.string()),
        ("item", pa.string()),
        ("part", pa.string()),
        ("field", pa.string()),
        ("match", pa.string()),
        ("ratio", pa.float32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
    ]
)
"""`part` of the item (question, answer) in `field` of the row (prompt, answer). `ratio` is the share or similarity that
the rule `match` measured. Characters [start, end) of the field's text are the shortest stretch with every n-gram that
counted."""

FieldName = Literal["prompt", "answer"]
_TEXTS: Final[dict[str, Callable[[pa.RecordBatch], pa.StringArray]]] = {
    "prompt": instruction_text,
    "answer": response_text,
}
_SOUGHT: Final = {"prompt": QUESTION, "answer": QUESTION | ANSWER}
_PART_NAMES: Final = pa.array([None, "question", "answer"], pa.string())
_FIELD_NAMES: Final = pa.array(list(_TEXTS), pa.string())


class NgramRule(Config):
    """A share of an item's word n-grams."""

    n: int = Field(ge=1, le=LONGEST_NGRAM)
    """Words in an n-gram."""
    min_ratio: float = Field(gt=0, le=1)
    """Smallest share of the item's distinct n-grams in a row that is a hit."""


class NearRule(Config):
    """Similarity of an item and a whole field."""

    n: int = Field(default=5, ge=1, le=LONGEST_NGRAM)
    """Words in an n-gram."""
    threshold: float = Field(default=0.8, gt=0, le=1)
    """Smallest Jaccard similarity of the two sets of n-grams that is a hit."""


class NumbersRule(Config):
    """A question in which one number may differ."""

    n: int = Field(default=8, ge=1, le=LONGEST_NGRAM)
    """Words in an n-gram."""
    min_ratio: float = Field(default=0.9, gt=0, le=1)
    """Smallest share of the item's distinct n-grams in a row that is a hit, with all numbers treated as equal. All
    numbers of the item but one must also be between the same words."""


class ContaminationStep(Step):
    """Adds `contamination`; verdict `contaminated`, whose value is benchmark/item, match and ratio of the best hit.

    `contamination` lists the hits of a row, best first (longest n-gram, then ratio), one for each item, part and field;
    it is empty for a row without hits and null for a row with an earlier verdict.
    """

    kind: Literal["contamination"] = "contamination"
    purpose: ClassVar[str] = "Find rows that hold items of benchmarks, and drop or tag them."
    example: ClassVar[str] = (
        "{kind: contamination, benchmarks: {gsm8k: {path: gsm8k_test.jsonl, question_columns: question}}}"
    )
    version: ClassVar[int] = INDEX_VERSION
    reads: ClassVar[tuple[str, ...]] = ("messages",)
    adds: ClassVar[pa.Schema] = pa.schema([("contamination", pa.list_(HIT))])

    benchmarks: dict[str, Benchmark] = Field(min_length=1)
    """Benchmarks by name."""
    ngrams: tuple[NgramRule, ...] = (NgramRule(n=13, min_ratio=0.5), NgramRule(n=8, min_ratio=0.7))
    """Shares of n-grams. A row is a hit when it reaches one of them."""
    near: NearRule | None = NearRule()
    """Similarity of an item and a whole field; null turns it off."""
    numbers: NumbersRule | None = NumbersRule()
    """Questions with one changed number; null or `mask_numbers` turns it off."""
    min_words: int = Field(default=5, ge=1)
    """An item with fewer words only matches a text that consists of nothing else. An ideograph counts as 0.7 words, a
    letter of another script without spaces as 0.25. `numbers` requires one word more."""
    latex: bool = True
    """Ignore differences of LaTeX notation: `$x ^ 2$` equals `x^{2}`, and `\\left( 2x \\right)` equals `(2 x)`."""
    mask_numbers: bool = False
    """Treat all numbers as equal, so that an item with changed numbers is found."""
    fields: tuple[FieldName, ...] = Field(default=("prompt", "answer"), min_length=1)
    """Texts of a row to search."""
    max_hits: int = Field(default=8, ge=1)
    """Largest number of hits listed per row."""
    action: Literal["drop", "tag"] = "drop"
    """drop: give a verdict. tag: only fill the column."""

    @model_validator(mode="after")
    def _looks_for_something(self) -> "ContaminationStep":
        sizes = [rule.n for rule in self.ngrams]
        if len(set(sizes)) < len(sizes):
            raise ValueError(f"ngrams has an n more than once: {sizes}; give one ratio for each")
        if not self.rules:
            raise ValueError(
                "ngrams is empty, and numbers and near are null, so nothing would be found; give one of them"
            )
        if len(set(self.fields)) < len(self.fields):
            raise ValueError(f"fields has a field more than once: {list(self.fields)}; remove one")
        return self

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, the strongest evidence first."""
        ngrams = sorted(self.ngrams, key=lambda rule: -rule.n)
        rules = [Rule(f"ngram_{rule.n}", rule.n, rule.min_ratio, near=False) for rule in ngrams]
        if self.numbers is not None and not self.mask_numbers:
            rules.append(Rule("numbers", self.numbers.n, self.numbers.min_ratio, near=False, masked=True))
        if self.near is not None:
            rules.append(Rule("near", self.near.n, self.near.threshold, near=True))
        return tuple(rules)

    @property
    def words(self) -> Words:
        return Words(self.latex, self.mask_numbers)

    def fingerprinted(self) -> dict[str, object]:
        named = {name: benchmark.fingerprinted() for name, benchmark in self.benchmarks.items()}
        return {**super().fingerprinted(), "benchmarks": named}

    def artefacts(self) -> dict[str, str]:
        """The digests of the benchmark files. If there is no index yet, the files are read and it is built."""
        files = self._files()
        self._index(files)
        return _digests(files)

    def open(self) -> BatchFn:
        path = self._index(self._files())
        index = Index(path, self.rules, self.words)

        def run(batch: pa.RecordBatch) -> pa.RecordBatch:
            hits, rows = self._search(index, batch)
            batch = append(batch, self.adds, [_lists(hits, rows, live(batch))])
            return batch if self.action == "tag" else _dropped(batch, self.label, hits, rows)

        return run

    def _files(self) -> dict[str, list[Path]]:
        return {name: benchmark_files(name, benchmark) for name, benchmark in self.benchmarks.items()}

    def _index(self, files: dict[str, list[Path]]) -> Path:
        """The index file of these benchmark files, built if it does not exist."""
        left_out = {"kind", "name", "sources", "skill_buckets", "action", "fields", "max_hits"}
        decides = {key: value for key, value in self.fingerprinted().items() if key not in left_out}
        made_from = {"version": [INDEX_VERSION, UNICODE_VERSION], "files": _digests(files), **decides}
        key = hashlib.sha256(canonical_json(made_from).encode()).hexdigest()
        folder = cache_dir() / "artefacts" / "contamination"
        path = folder / f"{key}.arrow"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f"{key}.lock", timeout=LOCK_TIMEOUT_S):
                if not path.is_file():
                    items = self._items(files)
                    tables = build(items, self.rules, self.words, self.min_words)
                    self._check(items, tables)
                    write(path, items, tables)
        return path

    def _items(self, files: dict[str, list[Path]]) -> Items:
        texts = [
            (name, item, part, text)
            for name, benchmark in self.benchmarks.items()
            for item, question, answer in read_items(name, benchmark, files[name])
            for part, text in ((QUESTION, question), (ANSWER, answer))
            if text
        ]
        names, items, parts, contents = zip(*texts, strict=True)
        strings = [pa.array(column, pa.string()) for column in (names, items, contents)]
        return Items(strings[0], strings[1], np.array(parts, np.int32), strings[2])

    def _check(self, items: Items, tables: Tables) -> None:
        """Refuse a benchmark none of whose items could be found."""
        sought = set(items.benchmark.take(pa.array(tables.set_text)).to_pylist())
        for name in self.benchmarks:
            if name not in sought:
                raise ConfigError(
                    f"benchmarks.{name}: no item has {self.min_words} words, and near is null, so none could be found; "
                    "lower min_words, set near, or remove the benchmark"
                )

    def _search(self, index: Index, batch: pa.RecordBatch) -> tuple[pa.StructArray, I64]:
        """The hits of a batch by row, best first within a row, and the row of each hit."""
        is_live = live(batch)
        texts = [_TEXTS[field](batch).filter(is_live) for field in self.fields]
        found = [index.scan(text, _SOUGHT[field]) for field, text in zip(self.fields, texts, strict=True)]
        row = np.concatenate([hits.row for hits in found])
        text, rule, ratio = (
            np.concatenate([getattr(hits, name) for hits in found]) for name in ("text", "rule", "ratio")
        )
        field = np.repeat(np.arange(len(found)), [len(hits.row) for hits in found])
        order = _best_first(row, np.lexsort((text, field, -ratio, rule, row)), (field, text), self.max_hits)
        row, text, rule, ratio, field = row[order], text[order], rule[order], ratio[order], field[order]
        start, end = _character_spans(texts, found, order)
        names = _FIELD_NAMES.take(pc.index_in(pa.array(self.fields), value_set=_FIELD_NAMES))
        columns = [
            index.benchmark.take(pa.array(text)),
            index.item.take(pa.array(text)),
            _PART_NAMES.take(pa.array(index.tables.text_part[text])),
            names.take(pa.array(field)),
            pa.array([each.name for each in self.rules], pa.string()).take(pa.array(rule)),
            pa.array(ratio.astype(np.float32)),
            pa.array(start.astype(np.int32)),
            pa.array(end.astype(np.int32)),
        ]
        hits = pa.StructArray.from_arrays(columns, fields=list(HIT))
        return hits, np.flatnonzero(is_live.to_numpy(zero_copy_only=False))[row]


def _digests(files: dict[str, list[Path]]) -> dict[str, str]:
    return {f"{name}.{number}": file_sha256(path) for name, paths in files.items() for number, path in enumerate(paths)}


def _best_first(row: I64, order: I64, same: tuple[I64, ...], most: int) -> I64:
    """Of hits ordered by row, the first for each row and value of `same`, and at most `most` of these a row."""
    seen = np.stack([row, *same])[:, order]
    _, first = np.unique(seen, axis=1, return_index=True)
    order = order[np.sort(first)]
    begins = np.searchsorted(row[order], row[order])  # where the hits of the row begin
    return order[np.arange(len(order)) - begins < most]


def _character_spans(texts: list[pa.StringArray], found: list[Hits], chosen: I64) -> tuple[I64, I64]:
    """Start and end, in characters, of the chosen hits; converted together."""
    starts, ends = [np.empty(len(chosen), np.int64) for _ in range(2)]
    first = 0
    for text, hits in zip(texts, found, strict=True):
        here = (chosen >= first) & (chosen < first + len(hits.row))
        number = chosen[here] - first
        starts[here] = characters_before(text, hits.row[number], hits.start[number])
        ends[here] = characters_before(text, hits.row[number], hits.end[number])
        first += len(hits.row)
    return starts, ends


def _lists(hits: pa.StructArray, rows: I64, is_live: pa.BooleanArray) -> pa.ListArray:
    """A list of hits for each row, null for a row with an earlier verdict."""
    offsets = np.searchsorted(rows, np.arange(len(is_live) + 1)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), hits, mask=pc.invert(is_live))


def _dropped(batch: pa.RecordBatch, step: str, hits: pa.StructArray, rows: I64) -> pa.RecordBatch:
    """Verdicts for the rows with a hit."""
    hit_rows, first = np.unique(rows, return_index=True)
    best = hits.take(pa.array(first))
    benchmark, item, match, ratio = (
        pc.struct_field(best, name).cast(pa.string()) for name in ("benchmark", "item", "match", "ratio")
    )
    value = pc.binary_join_element_wise(pc.binary_join_element_wise(benchmark, item, "/"), match, ratio, " ")
    mask = np.zeros(batch.num_rows, bool)
    mask[hit_rows] = True
    hit = pa.array(mask)
    values = pc.replace_with_mask(pa.nulls(batch.num_rows, pa.string()), hit, value)
    return drop(batch, step, hit, "contaminated", values)
