"""TEACHER_LOGP tables made by hand, for tests of what is joined to documents."""

import numpy as np
import pyarrow as pa

from etl.schema import TEACHER_LOGP
from etl.storage.build import Build, Chunk, Job
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from training.data.teacher_table import TABLE, completion_digests, digest_bytes


def targets_of(row):
    """The supervised tokens of a corpus row, in the order of its spans, without a document's first token."""
    places = [place for span in row["spans"] for place in range(max(span["start"], 1), span["end"])]
    return [row["input_ids"][place] for place in places]


def toy_logp(row, index):
    """A log-probability that identifies its row and its target."""
    return -float(np.float16(0.01 * row["n_tokens"] + 0.125 * index))


def toy_top(place, topk):
    """Ids and log-probabilities that identify their place; neither a vocabulary's nor a distribution's."""
    ids = [100 * place + rank for rank in range(topk)]
    return ids, [-0.5 * token for token in ids]


def write_teacher(folder, rows, topk=0, logp=toy_logp, top=toy_top):
    """A committed table of some corpus rows (dictionaries), in two row groups of one part.

    Args:
        folder: where to.
        rows: of the corpus.
        topk: entries of each target.
        logp: called with (row, number of the target).
        top: called with (number of the target, topk): ids and log-probabilities.
    """
    out = []
    for row in rows:
        targets = targets_of(row)
        digest = completion_digests(np.array(targets, np.int32), np.array([0, len(targets)]))
        tops = [top(place, topk) for place in range(len(targets))]
        out.append(
            {
                "id": row["id"],
                "completion_digest": digest_bytes(digest)[0].as_py(),
                "prompt_digest": bytes(16),
                "teacher_digest": "toy",
                "reasoning_mode": "medium",
                "temperature": 1.0,
                "prefix_tokens": 1,
                "logp": [logp(row, place) for place in range(len(targets))],
                "topk_ids": [token for ids, _ in tops for token in ids] if topk else None,
                "topk_logp": [value for _, values in tops for value in values] if topk else None,
            }
        )
    (batch,) = pa.Table.from_pylist(out, TEACHER_LOGP).combine_chunks().to_batches()
    findings = {"mean_logp": -1.0, "temperature": 1.0, "topk": topk}
    build = Build(Job(Location.of(folder), "teacher_logp", TABLE, TEACHER_LOGP, {}).with_findings(findings))
    plan = build.plan([0])
    half = batch.num_rows // 2
    build.writer(plan).write(0, iter([Chunk(batch[:half], half), Chunk(batch[half:], batch.num_rows - half)]))
    return build.commit(plan)


def append_columns(table, **columns):
    """A table with some columns of Python values after its own."""
    for name, values in columns.items():
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    return table


def rows_of(folder, split="train"):
    """The rows of a split in the order in which the reader has them."""
    dataset = Dataset.open(str(folder))
    parts = sorted(
        (part for part in dataset.manifest.parts if part.path.startswith(f"split={split}/")), key=lambda p: p.path
    )
    return [row for part in parts for row in dataset.part_location(part).open_parquet().read().to_pylist()]
