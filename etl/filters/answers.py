"""Drops examples without a usable answer: empty, or the error message of a generator that gave up.

Looks only at the assistant's messages to the user (channel `final` or none); reasoning and tool calls may be empty.
Arrow kernels over the contents, about 1 GB a CPU-second. Not for recipes that keep prompts without answers.
"""

from typing import ClassVar, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

from etl.messages import count_messages, final_text, is_final, message_items
from etl.step import BatchFn, Step, drop

_VALUE_CHARACTERS: Final = 100
_BLANK: Final = r"^[\s\pZ\p{Cc}]*$"


class AnswerStep(Step):
    """Drops rows with verdict `empty_answer` (no final message, or a blank one) or `failed_generation`.

    The value of `failed_generation` is the first 100 characters of the answer.
    """

    kind: Literal["answer"] = "answer"
    purpose: ClassVar[str] = "Drop rows whose answer is empty, or whose generation failed."
    example: ClassVar[str] = "{kind: answer}"
    reads: ClassVar[tuple[str, ...]] = ("messages",)

    failure_phrases: tuple[str, ...] = ("failed after maximum attempts",)
    """An answer that contains one of these (in any case) is an error message that the data set stored instead of an
    answer."""

    def open(self) -> BatchFn:
        return self._apply

    def _apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        items = message_items(batch)
        final = is_final(items)
        blank = pc.and_(final, pc.match_substring_regex(pc.struct_field(items, "content"), _BLANK))
        empty = pa.array((count_messages(batch, final) == 0) | (count_messages(batch, blank) > 0))
        batch = drop(batch, self.label, empty, "empty_answer", pa.nulls(batch.num_rows, pa.string()))
        text = final_text(batch)
        start = pc.utf8_slice_codeunits(text, 0, _VALUE_CHARACTERS)
        for phrase in self.failure_phrases:
            failed = pc.match_substring(text, phrase, ignore_case=True)
            batch = drop(batch, self.label, failed, "failed_generation", start)
        return batch
