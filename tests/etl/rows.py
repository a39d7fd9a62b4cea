"""Batches of toy conversations for the tests of steps."""

import pyarrow as pa

from etl.schema import ID, MESSAGE, VERDICT

EARLIER = {"step": "earlier", "reason": "x", "value": None}


def say(role, content, channel=None):
    return {"role": role, "channel": channel, "recipient": None, "content": content}


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
