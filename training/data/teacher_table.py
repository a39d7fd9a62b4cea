"""Reads a TEACHER_LOGP dataset: the teacher's log-probability of each supervised token, for rows by id.

The index of all rows is in memory, 28 bytes a row: id, part, row group and row, sorted by id, found by bisection. What
the teacher said is read when it is asked for, each row group once, in file order; a caller that asks for rows in the
order of the corpus therefore reads each row group about once (the table has the order of the corpus it was made from).

A row of the table belongs to a row of the corpus when the id is the same and the digest of the supervised tokens too.
Supervised are the tokens of the spans, in order, but for a document's first token, which nothing predicts. The sum of a
row's log-probabilities is its sequence log-probability: a reference model's table is one of this kind.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from etl.arrays import I64, U64
from etl.errors import DataError, SchemaError
from etl.hashing import binary_buffers, fixed_binary, hash_array
from etl.schema import TEACHER_LOGP
from etl.storage.dataset import Dataset
from etl.storage.location import Location

Ids: TypeAlias = Sequence[str] | npt.NDArray[np.bytes_] | pa.Array
"""Texts of 36 characters, or 16 bytes each: a numpy array of dtype S16, or Arrow strings or binary(16)."""

TABLE = "TEACHER_LOGP"
LOGP_ROUNDING = 1e-3
"""How far above 0 rounding may bring a log-probability: about the step of float16 below 2. Up to here a value counts as
0; one beyond, NaN and the infinities are refused (a probability of 0 is stored as -65504, the least float16)."""
_COMPLETION_SEED = 0x636F6D706C6574
"""Fixed: digests in stored tables depend on it."""


def completion_digests(tokens: npt.NDArray[np.int32], offsets: I64) -> U64:
    """128-bit digests of some token sequences: uint64 [n, 2].

    Args:
        tokens: int32, flat: the supervised tokens of all rows.
        offsets: int64 [n + 1]: row i has tokens[offsets[i]:offsets[i + 1]].
    """
    little = np.ascontiguousarray(tokens, "<i4")
    buffers = [None, pa.py_buffer(np.asarray(offsets, np.int64) * 4), pa.py_buffer(little)]
    rows = pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)
    return np.stack([hash_array(rows, _COMPLETION_SEED), hash_array(rows, _COMPLETION_SEED + 1)], axis=1)


def digest_bytes(digests: U64) -> pa.Array:
    """Digests, uint64 [n, 2], as the table stores them: binary(16) [n], big-endian."""
    data = pa.py_buffer(digests.astype(">u8").tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(digests), [None, data])


@dataclass(frozen=True)
class TeacherRows:
    """What the teacher said of n rows, flat."""

    offsets: I64
    """int64 [n + 1]: row i has the entries offsets[i]:offsets[i + 1]."""
    logp: npt.NDArray[np.float32]
    """ln p of each supervised token, at the table's temperature."""
    completion_digest: U64
    """uint64 [n, 2], to be compared with `completion_digests` of the rows' own supervised tokens."""
    topk_ids: npt.NDArray[np.int32] | None
    """[entries, k], the most likely first; None where the table has none."""
    topk_logp: npt.NDArray[np.float32] | None
    """[entries, k]"""


class TeacherTable:
    """A committed TEACHER_LOGP dataset.

    Attributes:
        mean_logp: mean over all scored tokens, in nats.
        temperature: at which the log-probabilities were taken.
        topk: entries a token, 0 for none.

    Raises:
        DataError: there is no committed dataset, or two of its rows have one id.
        SchemaError: it is of another table.
    """

    def __init__(self, folder: str | Location) -> None:
        self.dataset = Dataset.open(folder)
        manifest = self.dataset.manifest
        if manifest.table != TABLE:
            raise SchemaError(
                f"{folder} is a {manifest.table} dataset, not {TABLE}; give the one that rescoring writes"
            )
        self.mean_logp, self.temperature, topk = (self._finding(name) for name in ("mean_logp", "temperature", "topk"))
        self.topk = int(topk)
        self._parts = manifest.parts
        keys, places = self._read_index()
        order = np.argsort(keys, kind="stable")
        self._keys, self._places = keys[order], places[order]
        twice = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        if len(twice):
            raise DataError(
                f"{folder} has two rows with the id {self._keys[twice[0]].hex()}; run exact dedup on the corpus "
                "before rescoring it"
            )

    def __len__(self) -> int:
        return len(self._keys)

    def has(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """[n]: whether the table has a row of each id."""
        return self._find(ids) >= 0

    def gather(self, ids: Ids) -> TeacherRows:
        """What the teacher said of some rows, in the order asked for.

        Raises:
            DataError: the table has no row of an id, or a row's log-probability is above 0 or not finite.
        """
        found = self._find(ids)
        if (found < 0).any():
            missing = int(np.argmax(found < 0))
            raise DataError(f"{self.dataset.folder} has no row with the id {ids[missing]}; call `has` first")
        places = self._places[found]
        order = np.lexsort((places[:, 2], places[:, 1], places[:, 0]))
        pieces = [self._read_rows(places[numbers]) for numbers in _runs(places, order)]
        rows = _scatter(pieces, order, self.topk)
        logp = self._checked("logp", rows.logp, rows, found)
        if rows.topk_ids is None or rows.topk_logp is None:
            return replace(rows, logp=logp)
        # An entry without an id is one that the teacher did not give.
        given = np.where(rows.topk_ids >= 0, rows.topk_logp, 0)
        best = self._checked("topk_logp", given, rows, found)
        return replace(rows, logp=logp, topk_logp=np.where(rows.topk_ids >= 0, best, np.float32(np.nan)))

    def _checked(
        self, column: str, logp: npt.NDArray[np.float32], rows: TeacherRows, found: npt.NDArray[np.intp]
    ) -> npt.NDArray[np.float32]:
        """Log-probabilities of entries, [entries] or [entries, k], without what rounding puts above 0."""
        good = (logp <= LOGP_ROUNDING) & (logp > -np.inf)
        if not good.all():
            entry = int(np.argmin(good.reshape(len(logp), -1).all(axis=1)))
            row = int(np.searchsorted(rows.offsets, entry, side="right")) - 1
            value = logp[entry][~good[entry]] if logp.ndim > 1 else logp[entry : entry + 1]
            raise DataError(
                f"{self.dataset.folder}, id {uuid.UUID(bytes=self._keys[found[row]].ljust(16, bytes(1)))}: "
                f"the log-probability {value[0]:g} in {column} (target {entry - int(rows.offsets[row])} of the row) is "
                "not a finite number up to 0; rescore, or write natural logarithms of probabilities"
            )
        return np.minimum(logp, 0)

    def _find(self, ids: Ids) -> npt.NDArray[np.intp]:
        """[n]: place of each id in the index, -1 where it is not there."""
        wanted = id_keys(ids)
        if not len(self._keys):
            return np.full(len(wanted), -1, np.intp)
        place = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[place] == wanted, place, -1)

    def _finding(self, name: str) -> float:
        found = self.dataset.manifest.findings.get(name)
        if not isinstance(found, int | float):
            raise DataError(
                f"the manifest of {self.dataset.folder} has no number {name} in its findings; rescore the corpus"
            )
        return float(found)

    def _read_index(self) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.int32]]:
        """Ids, S16 [rows], and places (part, row group, row), int32 [rows, 3]."""
        keys = [np.empty(0, "S16")]
        places = [np.empty((0, 3), np.int32)]
        for number, part in enumerate(self._parts):
            with self._open(number) as file:
                for group, rows in enumerate(part.row_groups):
                    keys.append(id_keys(_column(file.read_row_group(group, columns=["id"]), "id")))
                    place = np.empty((rows, 3), np.int32)
                    place[:, 0], place[:, 1], place[:, 2] = number, group, np.arange(rows)
                    places.append(place)
        return np.concatenate(keys), np.concatenate(places)

    def _open(self, part: int) -> pq.ParquetFile:
        self.dataset.check_part(self._parts[part])
        return self.dataset.part_location(self._parts[part]).open_parquet()

    def _read_rows(self, places: npt.NDArray[np.int32]) -> pa.Table:
        """Rows of one row group, in that order."""
        columns = ["completion_digest", "logp", *(["topk_ids", "topk_logp"] if self.topk else [])]
        with self._open(int(places[0, 0])) as file:
            table = file.read_row_group(int(places[0, 1]), columns=columns)
        return table.take(pa.array(places[:, 2])).combine_chunks()


def id_keys(ids: Ids) -> npt.NDArray[np.bytes_]:
    """Ids as 16 bytes each, S16 [n], which sort and compare as bytes.

    Raises:
        DataError: a text is not a UUID of 36 characters.
    """
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "S":
        return ids
    array = ids if isinstance(ids, pa.Array) else pa.array(list(ids), pa.string())
    if pa.types.is_fixed_size_binary(array.type):
        return np.ascontiguousarray(fixed_binary(array)).view("S16").reshape(-1)
    data, offsets = binary_buffers(array)
    if len(array) and (np.diff(offsets) != 36).any():
        bad = array[int(np.argmax(np.diff(offsets) != 36))]
        raise DataError(f"'{bad}' is not an id (a UUID of 36 characters); give the ids of a corpus")
    text = data[offsets[0] : offsets[-1]].reshape(len(array), 36)
    digits = text[:, [at for at in range(36) if at not in (8, 13, 18, 23)]]
    value = np.where(digits <= ord("9"), digits - ord("0"), 255)
    value = np.where(digits >= ord("a"), digits - (ord("a") - 10), value)
    if (value > 15).any():
        raise DataError(f"'{array[int(np.argmax((value > 15).any(axis=1)))]}' is not an id in lower-case hex digits")
    packed = np.ascontiguousarray(value[:, 0::2] * 16 + value[:, 1::2], np.uint8)
    return packed.view("S16").reshape(-1)


def _runs(places: npt.NDArray[np.int32], order: npt.NDArray[np.intp]) -> list[npt.NDArray[np.intp]]:
    """`order`, cut where the row group changes."""
    if not len(order):
        return []
    change = (np.diff(places[order, :2], axis=0) != 0).any(axis=1)
    return np.split(order, np.flatnonzero(change) + 1)


def _scatter(pieces: list[pa.Table], order: npt.NDArray[np.intp], topk: int) -> TeacherRows:
    """Rows that were read in `order` of the rows asked for, back in the order asked for."""
    schema = pa.schema([TEACHER_LOGP.field(name) for name in ("completion_digest", "logp", "topk_ids", "topk_logp")])
    names = schema.names[: 4 if topk else 2]
    empty = pa.schema([schema.field(name) for name in names]).empty_table()
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    table = pa.concat_tables([empty, *(piece.cast(empty.schema) for piece in pieces)])
    table = table.take(pa.array(position)).combine_chunks()
    logp = _column(table, "logp")
    digest = fixed_binary(_column(table, "completion_digest")).copy().view(">u8").astype(np.uint64)
    top = [_column(table, name).flatten().to_numpy().reshape(-1, topk) for name in names[2:]] or [None, None]
    return TeacherRows(
        offsets=np.concatenate([[0], np.cumsum(logp.value_lengths().to_numpy(zero_copy_only=False))]).astype(np.int64),
        logp=logp.flatten().to_numpy(),
        completion_digest=digest.reshape(-1, 2),
        topk_ids=top[0],
        topk_logp=top[1],
    )


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)
