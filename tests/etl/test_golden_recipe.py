"""The recipe `synth` on 888 rows of PleIAs/SYNTH against token ids, masks and spans that another renderer wrote."""

import gzip
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl import conf
from etl.run.recipe import Recipe
from etl.storage.location import Location
from etl.storage.verify import verify
from tests.etl.stages.toys import run

SPAN_IDS = {"analysis": 1, "final": 2}
ENDOFTEXT = 199999


def documents(folder, name, dtype):
    """One array a document, from Megatron's indexed format: 34 bytes of header, then lengths as int32."""
    found = []
    for index in sorted(folder.glob(f"train__shard_*_{name}.idx")):
        data = index.read_bytes()
        assert data.startswith(b"MMIDIDX\0\0")
        (count,) = struct.unpack_from("<Q", data, 18)
        lengths = np.frombuffer(data, np.int32, count, 34)
        found += np.split(np.fromfile(index.with_suffix(".bin"), dtype), np.cumsum(lengths)[:-1])
    return found


@pytest.fixture(scope="module")
def golden(shared_data, tmp_path_factory):
    """The corpus by row number, and the folder of the expected values."""
    folder = shared_data / "synth_harmony_golden"
    here = tmp_path_factory.mktemp("golden")
    with gzip.open(folder / "rows.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for name, start, end in (("b", 0, 500), ("a", 500, len(rows))):
        texts = [
            {"synth_id": str(number), **{key: rows[number][key] for key in rows[0] if "synth" in key or key == "query"}}
            for number in range(start, end)
        ]
        pq.write_table(pa.Table.from_pylist(texts), here / f"{name}.parquet", row_group_size=200)
    said = json.loads((folder / "synth_harmony_manifest.json").read_text())["conversion"]
    (system,), (developer,) = said["system_message"]["content"], said["developer_message"]["content"]
    (here / "system.txt").write_text(system["model_identity"])
    (here / "developer.txt").write_text(developer["instructions"])
    recipe = conf.load(
        Recipe,
        "conf/recipes/synth.yaml",
        "recipes",
        [
            f"output={here / 'out'}",
            f"sources.synth.path={here}/*.parquet",
            f"harmony.system=@{here / 'system.txt'}",
            f"harmony.developer=@{here / 'developer.txt'}",
            "harmony.reasoning_effort=high",
            f"harmony.conversation_start_date={system['conversation_start_date']}",
        ],
    )
    run(recipe)
    assert list(verify(Location.of(here / "out"))) == []
    table = pq.read_table(here / "out" / "corpus", columns=["source_example_id", "input_ids", "spans"])
    return {int(row["source_example_id"]): row for row in table.to_pylist()}, folder


def test_every_row_is_there(golden):
    corpus, _ = golden
    assert sorted(corpus) == list(range(888))


def test_tokens_of_every_row(golden):
    corpus, folder = golden
    expected = documents(folder, "tokens", np.int32)
    assert {tokens[-1] for tokens in expected} == {ENDOFTEXT}
    equal = [np.array_equal(corpus[number]["input_ids"], tokens[:-1]) for number, tokens in enumerate(expected)]
    assert sum(equal) == 888


def test_masks_and_spans_of_every_row(golden):
    """Entry i of a mask is about the label at i, which is token i + 1."""
    corpus, folder = golden
    masks, span_ids = documents(folder, "lossmask", np.uint8), documents(folder, "span", np.uint8)
    equal = 0
    for number, (mask, spans) in enumerate(zip(masks, span_ids, strict=True)):
        made = np.zeros(len(mask), np.uint8)
        for span in corpus[number]["spans"]:
            made[span["start"] - 1 : span["end"] - 1] = SPAN_IDS[span["kind"]]
        equal += np.array_equal(made, spans) and np.array_equal(made > 0, mask)
    assert equal == 888
