"""What a description makes of a few records: conversations as short tuples, and the reasons for lost records."""

import json

from etl.sources.spec import Description
from tests.etl.sources.toysources import rows_of


def converse(tmp_path, description, *records, raw=False):
    """([messages of each good row], [(position of a bad row, reason)]); the whole PROMPT rows where `raw`."""
    shape = Description.model_validate({"skill_bucket": "chat", **description}).root
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records))
    good, bad = rows_of(tmp_path / "x.jsonl", shape)
    return (good if raw else [spoken(row) for row in good]), bad


def spoken(row):
    """The messages of a row: (role, channel, recipient, content), trailing nulls left out."""
    return [
        (said["role"], *(said[key] for key in ("channel", "recipient") if said[key]), said["content"])
        for said in row["messages"]
    ]
