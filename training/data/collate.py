"""Turns one pack of documents into the arrays of one training sequence; the only place that shifts labels.

A span covers tokens [start, end) as *targets*: token t is predicted at row t - 1 of the same document. A document's
first token is never a target, and no row predicts across a document's end. Remaining room is a document of its own that
nothing attends to and nothing supervises; a pack without documents is only room. A compiled kernel fills the arrays:
0.02 ms for 8,192 tokens, all of collate included.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from etl.arrays import F32, I64
from etl.jit import njit
from etl.schema import SPAN_KINDS
from training.data.documents import Documents, TeacherSignal

UNSUPERVISED = -1
PAD_ID = 0
"""Any valid token id: nothing reads what is predicted there."""


@dataclass(frozen=True)
class Pack:
    """One training sequence of T tokens."""

    input_ids: I64
    """[T]"""
    position_ids: I64
    """[T], from 0 in each document."""
    cu_seqlens: npt.NDArray[np.int32]
    """[documents + 1] (room included): document d is [cu_seqlens[d], cu_seqlens[d + 1])."""
    targets: I64
    """[T]: the token that row t predicts; its own value where unsupervised."""
    target_kind: npt.NDArray[np.int8]
    """[T]: position in SPAN_KINDS of the span that the target lies in, or UNSUPERVISED."""
    document: npt.NDArray[np.int32]
    """[T]: number of the document in the pack, -1 in room."""
    id_hash: npt.NDArray[np.uint64]
    """[documents without room]: hashes of their ids."""
    label: npt.NDArray[np.int32]
    """[documents without room]: position in the reader's `labels`."""
    teacher_logp: F32 | None = None
    """[T]: the teacher's ln p of targets[t], NaN where there is none; None for a stream without a teacher."""
    topk_ids: npt.NDArray[np.int32] | None = None
    """[T, k]: the teacher's most likely tokens at row t, the first first; -1 where there are none."""
    topk_logp: F32 | None = None
    """[T, k]: their ln p; NaN where there are none."""
    pair: npt.NDArray[np.int32] | None = None
    """[documents without room]: number of its preference pair in the pack, -1 where its other side is not in it."""
    side: npt.NDArray[np.int8] | None = None
    """[documents without room]: 0 chosen, 1 rejected, -1 of no pair."""
    reference_logp: F32 | None = None
    """[documents without room]: the reference model's ln p of all targets of the document; NaN where there is none."""

    @property
    def num_tokens(self) -> int:
        return int((self.document >= 0).sum())

    def span_counts(self) -> I64:
        """[kinds]: supervised rows of each span kind."""
        return np.bincount(self.target_kind + 1, minlength=len(SPAN_KINDS) + 1)[1:]

    def tensors(self, device: torch.device) -> "PackTensors":
        """The pack as the model takes it, with a batch dimension of 1 on ids and positions."""
        return PackTensors(
            input_ids=torch.from_numpy(self.input_ids[None]).to(device),
            position_ids=torch.from_numpy(self.position_ids[None]).to(device),
            cu_seqlens=torch.from_numpy(self.cu_seqlens).to(device),
            targets=torch.from_numpy(self.targets).to(device),
            target_kind=torch.from_numpy(self.target_kind).to(device).to(torch.int64),
            document=torch.from_numpy(self.document).to(device),
            teacher_logp=_moved(self.teacher_logp, device),
            topk_ids=_moved(self.topk_ids, device),
            topk_logp=_moved(self.topk_logp, device),
            pair=_moved(self.pair, device),
            side=_moved(self.side, device),
            reference_logp=_moved(self.reference_logp, device),
        )


def _moved(array: npt.NDArray[np.generic] | None, device: torch.device) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array).to(device)


@dataclass(frozen=True)
class PackTensors:
    """A Pack on a device: ids and positions int64 [1, T], target_kind int64 [T], all else as in Pack."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    targets: torch.Tensor
    target_kind: torch.Tensor
    document: torch.Tensor
    teacher_logp: torch.Tensor | None = None
    topk_ids: torch.Tensor | None = None
    topk_logp: torch.Tensor | None = None
    pair: torch.Tensor | None = None
    side: torch.Tensor | None = None
    reference_logp: torch.Tensor | None = None

    @property
    def in_document(self) -> torch.Tensor:
        """bool [T]: false in room."""
        return self.document >= 0


def collate(documents: Documents, pack_tokens: int) -> Pack:
    """The documents, in order, as one pack of `pack_tokens` tokens. They must fit."""
    num_documents = len(documents)
    input_ids, position_ids, targets = (np.empty(pack_tokens, np.int64) for _ in range(3))
    target_kind = np.empty(pack_tokens, np.int8)
    document = np.empty(pack_tokens, np.int32)
    borders = np.empty(num_documents + 2, np.int32)
    spans = documents.span_kind, documents.span_start, documents.span_end
    by_token = input_ids, position_ids, targets, target_kind, document, borders
    used = _fill(documents.input_ids, documents.tokens, documents.spans, spans, by_token)
    logp, topk_ids, topk_logp = _teacher(documents, documents.teacher, pack_tokens)
    has_pairs = np.count_nonzero(documents.pair) > 0
    return Pack(
        input_ids=input_ids,
        position_ids=position_ids,
        cu_seqlens=borders[: num_documents + 1 + (used < pack_tokens)],
        targets=targets,
        target_kind=target_kind,
        document=document,
        id_hash=documents.id_hash,
        label=documents.label,
        teacher_logp=logp,
        topk_ids=topk_ids,
        topk_logp=topk_logp,
        pair=_pair_numbers(documents.pair, documents.side) if has_pairs else None,
        side=documents.side if has_pairs else None,
        reference_logp=documents.reference_logp,
    )


def _teacher(
    documents: Documents, signal: TeacherSignal | None, pack_tokens: int
) -> tuple[F32 | None, npt.NDArray[np.int32] | None, F32 | None]:
    """teacher_logp, topk_ids and topk_logp of a pack."""
    if signal is None:
        return None, None, None
    source = np.full(pack_tokens, -1, np.int64)
    _fill_entries(documents.tokens, documents.spans, documents.span_start, documents.span_end, signal.entries, source)
    rows = np.flatnonzero(source >= 0)
    logp = np.full(pack_tokens, np.nan, np.float32)
    logp[rows] = signal.logp[source[rows]]
    if signal.topk_ids is None or signal.topk_logp is None:
        return logp, None, None
    topk_ids = np.full((pack_tokens, signal.topk_ids.shape[1]), -1, np.int32)
    topk_logp = np.full(topk_ids.shape, np.nan, np.float32)
    topk_ids[rows] = signal.topk_ids[source[rows]]
    topk_logp[rows] = signal.topk_logp[source[rows]]
    return logp, topk_ids, topk_logp


@njit
def _fill(
    source: npt.NDArray[np.int32],
    tokens: I64,
    spans: I64,
    of_spans: tuple[npt.NDArray[np.int8], npt.NDArray[np.int32], npt.NDArray[np.int32]],
    out: tuple[I64, I64, I64, npt.NDArray[np.int8], npt.NDArray[np.int32], npt.NDArray[np.int32]],
) -> int:
    """Fill the arrays of a pack, document by document, so that each is in the cache; how many tokens are of documents.

    Args:
        source: tokens of all documents, flat.
        tokens: [documents, 2], ranges of `source`.
        spans: [documents, 2], ranges of the arrays in `of_spans`.
        of_spans: kind, start and end.
        out: input_ids, position_ids, targets, target_kind, document, and cu_seqlens with the end of the room behind it.
    """
    span_kind, span_start, span_end = of_spans
    input_ids, position_ids, targets, target_kind, document, borders = out
    borders[0] = row = 0
    for number in range(len(tokens)):
        ids = source[tokens[number, 0] : tokens[number, 1]]
        length = len(ids)
        assert row + length <= len(input_ids), "the packer never overfills"
        # Over views from 0 on, which compiles to vector instructions.
        own_ids, own_positions = input_ids[row : row + length], position_ids[row : row + length]
        own_targets, own_kind = targets[row : row + length], target_kind[row : row + length]
        own_document = document[row : row + length]
        for at in range(length):
            own_ids[at] = own_targets[at] = ids[at]
            own_positions[at] = at
            own_document[at] = number
        own_kind[:] = UNSUPERVISED
        for span in range(spans[number, 0], spans[number, 1]):
            start, end = max(span_start[span], 1), span_end[span]
            if start < end:
                own_targets[start - 1 : end - 1] = ids[start:end]
                own_kind[start - 1 : end - 1] = span_kind[span]
        row += length
        borders[number + 1] = row
    borders[len(tokens) + 1] = len(input_ids)
    input_ids[row:] = targets[row:] = PAD_ID
    target_kind[row:] = UNSUPERVISED
    document[row:] = -1
    room = position_ids[row:]
    for at in range(len(room)):
        room[at] = at
    return row


@njit
def _fill_entries(
    tokens: I64,
    spans: I64,
    span_start: npt.NDArray[np.int32],
    span_end: npt.NDArray[np.int32],
    entries: I64,
    source: I64,
) -> None:
    """Of each supervised row of a scored document, which entry of the teacher is of its target."""
    first = 0
    for number in range(len(tokens)):
        entry = entries[number, 0]
        if entry < entries[number, 1]:
            for span in range(spans[number, 0], spans[number, 1]):
                for token in range(max(span_start[span], 1), span_end[span]):
                    source[first + token - 1] = entry
                    entry += 1
        first += tokens[number, 1] - tokens[number, 0]


@njit
def _pair_numbers(pair: I64, side: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
    """Numbers the pairs both of whose sides are in the pack, each side once; -1 for all other documents."""
    numbers = np.full(len(pair), -1, np.int32)
    count = 0
    for late in range(len(pair)):
        for early in range(late):
            is_other = pair[early] == pair[late] != 0 and side[early] == 1 - side[late]
            if is_other and numbers[early] < 0:
                numbers[early] = numbers[late] = count
                count += 1
                break
    return numbers
