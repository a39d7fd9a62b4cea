"""Documents in flat arrays, from the reader to collate."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from etl.arrays import I64


@dataclass(frozen=True)
class TeacherSignal:
    """A teacher's scores of the targets of some documents, flat."""

    entries: I64
    """[documents, 2]: document d has logp[entries[d, 0] : entries[d, 1]], one of each of its targets in the order of
    its spans; none for a document that was not scored."""
    logp: npt.NDArray[np.float32]
    """ln p of each target."""
    topk_ids: npt.NDArray[np.int32] | None = None
    """[entries, k], the most likely first; None where only `logp` was stored."""
    topk_logp: npt.NDArray[np.float32] | None = None
    """[entries, k]"""

    def select(self, numbers: I64) -> "TeacherSignal":
        """That of some of the documents, in that order; the flat arrays are shared."""
        return replace(self, entries=self.entries[numbers])


@dataclass(frozen=True)
class Documents:
    """Tokens and spans of some documents, and the range of each document in them."""

    input_ids: npt.NDArray[np.int32]
    span_kind: npt.NDArray[np.int8]
    """Position in etl.schema.SPAN_KINDS."""
    span_start: npt.NDArray[np.int32]
    span_end: npt.NDArray[np.int32]
    """Half-open token range inside the document."""
    tokens: I64
    """[documents, 2]: document d is input_ids[tokens[d, 0] : tokens[d, 1]]."""
    spans: I64
    """[documents, 2]: its spans are span_kind[spans[d, 0] : spans[d, 1]], and so on."""
    id_hash: npt.NDArray[np.uint64]
    label: npt.NDArray[np.int32]
    """[documents]: position in the reader's `labels`."""
    pair: I64
    """[documents]: hash of the preference pair, 0 for a document of none."""
    side: npt.NDArray[np.int8]
    """[documents]: 0 chosen, 1 rejected, -1 of no pair."""
    teacher: TeacherSignal | None = None
    reference_logp: npt.NDArray[np.float32] | None = None
    """[documents]: ln p of all targets together by the reference model, NaN where there is none."""

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, numbers: I64) -> "Documents":
        """Some of the documents, in that order; the flat arrays are shared, not copied."""
        return Documents(
            self.input_ids,
            self.span_kind,
            self.span_start,
            self.span_end,
            self.tokens[numbers],
            self.spans[numbers],
            self.id_hash[numbers],
            self.label[numbers],
            self.pair[numbers],
            self.side[numbers],
            None if self.teacher is None else self.teacher.select(numbers),
            None if self.reference_logp is None else self.reference_logp[numbers],
        )


def ranges(lengths: I64) -> I64:
    """[n, 2] consecutive half-open ranges of these lengths."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.stack([ends - lengths, ends], axis=1)
