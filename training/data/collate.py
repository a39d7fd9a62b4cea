"""One pack of documents as the arrays of one training sequence; the only place that shifts labels.

A span covers tokens [start, end) as *targets*: token t is predicted at row t - 1 of the same document. A document's
first token is never a target and no row predicts across a document's end. Room that is left over is a document of its
own that nothing attends to and nothing supervises; a pack without documents is all room.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from etl.schema import SPAN_KINDS
from training.data.reader import Documents

UNSUPERVISED = -1
PAD_ID = 0
"""Any valid token id: nothing reads what is predicted there."""


@dataclass(frozen=True)
class Pack:
    """One training sequence of T tokens."""

    input_ids: npt.NDArray[np.int64]
    """[T]"""
    position_ids: npt.NDArray[np.int64]
    """[T], from 0 in each document."""
    cu_seqlens: npt.NDArray[np.int32]
    """[documents + 1] (room included): document d is [cu_seqlens[d], cu_seqlens[d + 1])."""
    targets: npt.NDArray[np.int64]
    """[T]: the token that row t predicts; its own value where unsupervised."""
    target_kind: npt.NDArray[np.int8]
    """[T]: position in SPAN_KINDS of the span that the target lies in, or UNSUPERVISED."""
    document: npt.NDArray[np.int32]
    """[T]: number of the document in the pack, -1 in room."""
    id_hash: npt.NDArray[np.uint64]
    """[documents without room]: hashes of their ids."""

    @property
    def num_tokens(self) -> int:
        return int((self.document >= 0).sum())

    def span_counts(self) -> npt.NDArray[np.int64]:
        """[kinds]: supervised rows of each span kind."""
        return np.bincount(self.target_kind + 1, minlength=len(SPAN_KINDS) + 1)[1:]

    def tensors(self, device: torch.device) -> "PackTensors":
        """The pack as the model takes it, with a batch dimension of 1 on ids and positions."""
        return PackTensors(
            input_ids=torch.from_numpy(self.input_ids)[None].to(device),
            position_ids=torch.from_numpy(self.position_ids)[None].to(device),
            cu_seqlens=torch.from_numpy(self.cu_seqlens).to(device),
            targets=torch.from_numpy(self.targets).to(device),
            target_kind=torch.from_numpy(self.target_kind).to(device, torch.int64),
            in_document=torch.from_numpy(self.document >= 0).to(device),
        )


@dataclass(frozen=True)
class PackTensors:
    """A Pack on a device: ids and positions int64 [1, T], cu_seqlens int32, the rest int64 or bool [T]."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    targets: torch.Tensor
    target_kind: torch.Tensor
    in_document: torch.Tensor


def collate(documents: Documents, pack_tokens: int) -> Pack:
    """The documents, in order, as one pack of `pack_tokens` tokens. They must fit."""
    lengths = documents.tokens[:, 1] - documents.tokens[:, 0]
    ends = np.cumsum(lengths)
    used = int(ends[-1]) if len(ends) else 0
    assert used <= pack_tokens, "the packer never overfills"
    room = [] if used == pack_tokens else [pack_tokens - used]
    all_lengths = np.concatenate([lengths, np.array(room, np.int64)])
    starts = np.cumsum(all_lengths) - all_lengths
    input_ids = np.full(pack_tokens, PAD_ID, np.int64)
    target_kind = np.full(pack_tokens, UNSUPERVISED, np.int8)
    for number in range(len(documents)):
        first, last = documents.tokens[number]
        input_ids[starts[number] : starts[number] + last - first] = documents.input_ids[first:last]
        for span in range(*documents.spans[number]):
            begin = starts[number] + max(int(documents.span_start[span]), 1) - 1
            end = starts[number] + int(documents.span_end[span]) - 1
            target_kind[begin : max(begin, end)] = documents.span_kind[span]
    targets = input_ids.copy()
    rows = np.flatnonzero(target_kind != UNSUPERVISED)
    targets[rows] = input_ids[rows + 1]
    return Pack(
        input_ids=input_ids,
        position_ids=np.arange(pack_tokens, dtype=np.int64) - np.repeat(starts, all_lengths),
        cu_seqlens=np.concatenate([starts, [pack_tokens]]).astype(np.int32),
        targets=targets,
        target_kind=target_kind,
        document=np.repeat(np.append(np.arange(len(documents)), -1)[: len(all_lengths)], all_lengths).astype(np.int32),
        id_hash=documents.id_hash,
    )
