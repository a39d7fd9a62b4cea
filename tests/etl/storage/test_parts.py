"""One part: its row groups, its name, its encodings, and that equal rows give equal bytes."""

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.schema import ID, PROMPT, TOKENIZED_COLUMNS, aligned, encoded
from etl.storage.location import Location
from etl.storage.parts import PartWriter
from tests.etl.storage.builds import NUMBERS, numbers


def write(folder: Location, batches: list[pa.RecordBatch], schema: pa.Schema = NUMBERS, **more):
    with PartWriter(folder, 7, schema, "TOY", **more) as writer:
        for batch in batches:
            writer.write(batch)
        return writer.finish()


def test_a_batch_is_a_row_group_and_the_name_says_the_content(folder):
    part = write(folder, [numbers(1, 2, 3), numbers(4), numbers(5, 6)])
    stored = (folder / part.path).read()
    digest = hashlib.sha256(stored).hexdigest()
    assert part.path == f"part-00007-{digest[:16]}.parquet"
    assert (part.split, part.rows, part.row_groups, part.tokens) == (7, 6, (3, 1, 2), None)
    assert (part.sha256, part.bytes) == (digest, len(stored))
    with (folder / part.path).open_parquet() as file:
        assert [file.metadata.row_group(group).num_rows for group in range(3)] == [3, 1, 2]
        assert file.read().to_pylist() == [{"n": n, "word": f"w{n}"} for n in range(1, 7)]
        assert file.schema_arrow.metadata[b"stillhouse.table"] == b"TOY"
    assert list(folder.walk()) == [(part.path, part.bytes)]


def test_a_large_batch_is_still_one_row_group(tmp_path):
    # Parquet writers cut at 1,048,576 rows by default.
    rows = 1_100_000
    schema = pa.schema([("flag", pa.bool_())])
    batch = pa.record_batch([pa.nulls(rows, pa.bool_())], schema=schema)
    assert write(Location.of(tmp_path), [batch], schema).row_groups == (rows,)
    (path,) = tmp_path.iterdir()
    assert pq.ParquetFile(path).num_row_groups == 1


def test_a_partition_is_a_folder(folder):
    part = write(folder, [numbers(1)], partition="split=train/skill_bucket=B1")
    assert part.path.startswith("split=train/skill_bucket=B1/part-00007-")
    assert [path for path, _ in folder.walk()] == [part.path]


def test_equal_rows_give_equal_bytes_wherever_their_buffers_came_from(folder):
    one = write(folder / "one", [numbers(1, 2), numbers(3)])
    sliced = numbers(0, 1, 2, 9).slice(1, 2)
    other = write(folder / "other", [sliced, numbers(3)])
    assert one == other
    assert (folder / "one" / one.path).read() == (folder / "other" / other.path).read()


def test_row_groups_are_part_of_the_content(folder):
    one = write(folder, [numbers(1, 2, 3)])
    other = write(folder, [numbers(1, 2), numbers(3)])
    assert one.sha256 != other.sha256


def test_token_ids_are_byte_stream_split_and_counted(tmp_path):
    schema = aligned(TOKENIZED_COLUMNS)
    rows = [
        {"id": bytes(16), "input_ids": [1, 2, 200_002], "n_tokens": 3},
        {"id": bytes(15) + b"1", "input_ids": None, "n_tokens": None},
        {"id": bytes(15) + b"2", "input_ids": [5] * 90, "n_tokens": 90},
    ]
    part = write(Location.of(tmp_path), [pa.RecordBatch.from_pylist(rows, schema=schema)], schema)
    assert part.tokens == 93
    metadata = pq.read_metadata(tmp_path / part.path).row_group(0)
    columns = [metadata.column(index) for index in range(metadata.num_columns)]
    encodings = {column.path_in_schema: set(column.encodings) for column in columns}
    assert "BYTE_STREAM_SPLIT" in encodings["input_ids.list.element"]
    assert "RLE_DICTIONARY" not in encodings["input_ids.list.element"]
    assert "RLE_DICTIONARY" in encodings["spans.list.element.kind"]
    assert {column.compression for column in columns} == {"ZSTD"}


def test_how_a_column_lies_in_a_file_is_its_fields_word_and_no_reader_sees_it(tmp_path):
    plain = [pa.field("hashes", pa.binary()), pa.field("ids", pa.list_(pa.int32())), pa.field("word", pa.string())]
    schema = pa.schema([encoded(plain[0], "plain"), encoded(plain[1], "byte_stream_split"), plain[2]])
    batch = pa.RecordBatch.from_pylist([{"hashes": b"ab", "ids": [1, 2], "word": "w"}] * 50, schema=schema)
    part = write(Location.of(tmp_path), [batch], schema)
    group = pq.read_metadata(tmp_path / part.path).row_group(0)
    hashes, ids, word = (group.column(number) for number in range(3))
    assert (hashes.compression, ids.compression, word.compression) == ("UNCOMPRESSED", "ZSTD", "ZSTD")
    assert not hashes.has_dictionary_page
    assert "BYTE_STREAM_SPLIT" in ids.encodings
    assert word.has_dictionary_page
    stored = pq.read_schema(tmp_path / part.path)
    assert [(field.name, field.metadata) for field in stored] == [("hashes", None), ("ids", None), ("word", None)]


def test_a_bit_that_turned_is_found_when_it_is_read(folder):
    place = folder / write(folder, [numbers(*range(1000))]).path
    data = place.read()
    with place.open_parquet() as file:
        group = file.metadata.row_group(0)
        good = file.read()
    num_found = 0
    for column in map(group.column, range(group.num_columns)):
        start = column.dictionary_page_offset or column.data_page_offset
        for at in range(start, start + column.total_compressed_size, 61):
            damaged = bytearray(data)
            damaged[at] ^= 1 << at % 8
            place.replace(bytes(damaged))
            try:
                with place.open_parquet() as file:
                    found = file.read()
            except (OSError, ValueError):
                num_found += 1
            else:
                # Some bits of a page's header say nothing.
                assert found.equals(good)
    assert num_found > 50


def test_a_dictionary_column_is_cast_to_the_declared_type(tmp_path):
    schema = pa.schema([pa.field("word", pa.string())])
    batch = pa.record_batch([pa.array(["a", "b", "a"]).dictionary_encode()], ["word"])
    part = write(Location.of(tmp_path), [batch], schema)
    assert pq.read_schema(tmp_path / part.path).field("word").type == pa.string()


def test_a_null_in_a_required_column_is_refused(tmp_path):
    batch = pa.record_batch(
        [pa.array([None], ID), *(pa.nulls(1, field.type) for field in list(PROMPT)[1:])], PROMPT.names
    )
    with pytest.raises(ValueError, match="id"):
        write(Location.of(tmp_path), [batch], PROMPT)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_visible_before_finish(folder):
    with PartWriter(folder, 0, NUMBERS, "TOY") as writer:
        writer.write(numbers(1))
        assert list(folder.walk()) == []
    assert list(folder.walk()) == []
