"""JSON Lines column by column and line by line: the two ways give the same rows."""

import json

from hypothesis import given
from hypothesis import strategies as st

from etl.sources.formats import jsonl
from etl.sources.spec import Description
from tests.etl.sources.toysources import rows_of

SHAPE = Description.model_validate(
    {
        "shape": "columns", "example_id": "id", "user": "q", "final": "a.b", "license": "by", "meta": ["m", "a.c"],
        "skill_bucket": "chat",
    }
).root  # fmt: skip
VALUES = st.none() | st.text(max_size=3) | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.booleans()
RECORDS = st.fixed_dictionaries(
    {"id": st.text(max_size=2) | st.integers(), "q": st.text(max_size=2), "a": st.fixed_dictionaries({"b": st.text()})},
    optional={"by": VALUES, "m": VALUES | st.lists(VALUES, max_size=2), "c": VALUES},
)


@given(records=st.lists(RECORDS, min_size=1, max_size=4))
def test_both_ways_give_the_same_rows(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("jsonl") / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    both = rows_of(path, SHAPE)
    whole, jsonl._columns = jsonl._columns, lambda *_: None
    try:
        assert rows_of(path, SHAPE) == both
    finally:
        jsonl._columns = whole
