"""Batches of toy conversations for the tests of steps, and a step over a field of a source."""

from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from etl.schema import ID, MESSAGE, VERDICT
from etl.step import Step, append, drop

EARLIER = {"step": "earlier", "reason": "x", "value": None}


class LevelStep(Step):
    """Drops rows below a level, and says how far above it the others are."""

    kind: str = "level"
    reads: ClassVar[tuple[str, ...]] = ("level",)
    adds: ClassVar[pa.Schema] = pa.schema([("above", pa.int64())])
    least: int

    def open(self):
        def run(batch):
            above = pc.subtract(batch.column("level"), self.least)
            batch = drop(batch, self.label, pc.less(above, 0), "low", batch.column("level"))
            return append(batch, self.adds, [above])

        return run


def say(role, content, channel=None):
    more = {"recipient": None, "content_type": None, "call_id": None}
    return {"role": role, "channel": channel, "content": content, **more}


def asked(question, answer, reasoning=""):
    thought = [say("assistant", reasoning, "analysis")] if reasoning else []
    return [say("user", question), *thought, say("assistant", answer, "final")]


def conversations(rows, dropped=()):
    """A batch of `id` (the row number), `messages` and `verdict`; the rows numbered in `dropped` have one already."""
    ids = [n.to_bytes(16, "big") for n in range(len(rows))]
    verdicts = [EARLIER if n in dropped else None for n in range(len(rows))]
    return pa.record_batch(
        [pa.array(ids, ID), pa.array(rows, pa.list_(MESSAGE)), pa.array(verdicts, VERDICT)],
        ["id", "messages", "verdict"],
    )


def verdicts(batch):
    """(step, reason, value) of each row, None for a living one."""
    return [v and (v["step"], v["reason"], v["value"]) for v in batch.column("verdict").to_pylist()]
