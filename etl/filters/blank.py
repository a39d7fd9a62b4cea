"""Finds rows that say nothing: only white space, or no text. Ingest gives them a verdict in every recipe.

White space is Unicode's. Arrow kernels read each text up to its first other character.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import Bools
from etl.messages import count_messages, is_final, message_items
from etl.schema import TEXT_ROLE
from etl.step import drop


def drop_blank(batch: pa.RecordBatch, step: str, has_answers: bool) -> pa.RecordBatch:
    """Give the rows that say nothing a verdict.

    `blank_prompt`: the user's messages are only white space. `blank_answer`: the assistant neither answers nor calls a
    tool. Values are null. Raw documents get neither.

    Args:
        batch: PROMPT rows.
        step: the step of the verdict.
        has_answers: whether rows must have an answer; false for prompts.
    """
    items = message_items(batch)
    role = pc.struct_field(items, "role")
    content = pc.struct_field(items, "content")
    speaks = pc.invert(pc.or_(pc.equal(content, ""), pc.utf8_is_space(content)))
    called = pc.not_equal(pc.fill_null(pc.struct_field(items, "recipient"), ""), "")
    calls = pc.and_(pc.equal(role, "assistant"), called)

    def has(mask: pa.BooleanArray) -> Bools:
        return count_messages(batch, mask) > 0

    is_text, asks = has(pc.equal(role, TEXT_ROLE)), pc.equal(role, "user")
    says = has(pc.or_(pc.and_(is_final(items), speaks), calls))
    nothing = pa.nulls(batch.num_rows, pa.string())
    batch = drop(batch, step, pa.array(has(asks) & ~has(pc.and_(asks, speaks))), "blank_prompt", nothing)
    return drop(batch, step, pa.array(np.bool_(has_answers) & ~says & ~is_text), "blank_answer", nothing)
