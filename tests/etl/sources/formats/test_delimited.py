"""CSV and TSV: quotes, line ends, other separators, and what is no row."""

import gzip

import pytest

from etl.errors import SourceError
from etl.sources.spec import Description
from tests.etl.sources.shapes.toyshapes import spoken
from tests.etl.sources.toysources import rows_of

SHAPE = Description.model_validate(
    {"shape": "columns", "example_id": "id", "user": "q", "final": "a", "meta": ["n"], "skill_bucket": "chat"}
).root


def write(tmp_path, text, name="x.csv"):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return rows_of(tmp_path / name, SHAPE)


def said(row):
    return (row["source_example_id"], *(content for *_, content in spoken(row)), row["meta_json"])


ROWS = [("1", 'a "b"\nc', "x,y", '{"n":"7"}'), ("2", "é\u2028", " z ", '{"n":""}')]


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_quotes_line_ends_and_a_mark(tmp_path, name):
    text = '\ufeffid,q,a,n\r\n1,"a ""b""\nc","x,y",7\r\n\r\n2,é\u2028, z ,\n'
    good, bad = write(tmp_path, text, name)
    assert [said(row) for row in good] == ROWS
    assert bad == []
    assert [row["position"] for row in good] == [0, 1]


def test_tabs_and_semicolons_divide(tmp_path):
    for name, sign in (("x.tsv", "\t"), ("x.csv", ";")):
        good, _ = write(tmp_path, "id,q,a,n\n1,b,c,d\n".replace(",", sign), name)
        assert [said(row) for row in good] == [("1", "b", "c", '{"n":"d"}')]


def test_rows_of_another_length_and_no_csv_are_bad_rows(tmp_path):
    good, bad = write(tmp_path, 'id,q,a,n\n1,b,c\n2,b,c,d\n3,b,c,d,e\n4,"b"x,c,d\n5,b,c,d\n')
    assert [row["source_example_id"] for row in good] == ["2", "5"]
    assert bad == [(0, "wrong_number_of_values"), (2, "wrong_number_of_values"), (3, "invalid_csv")]
    assert [row["position"] for row in good] == [1, 4]


def test_text_that_is_not_utf8_is_a_bad_row(tmp_path):
    good, bad = write(tmp_path, b"id,q,a,n\n1,b,c,d\n2,\xff,c,d\n")
    assert [row["source_example_id"] for row in good] == ["1"]
    assert bad == [(1, "invalid_utf8")]


@pytest.mark.parametrize("text", ["", "\n\n", "id,q,a,n", "id,q,a,n\n"])
def test_a_file_without_rows_gives_none(tmp_path, text):
    assert write(tmp_path, text) == ([], [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,q,n\n1,b,c\n", r"lacks the columns \['a'\]"),
        ("id,q,a,a\n1,b,c,d\n", "several columns"),
        ('id,q,a,n\n1,b,c,d\n2,"b,c,d\n3,b,c,d\n', "a quote in the row of line 3 is not closed"),
        ("id,q,a,n\n".encode("utf-16"), "is UTF-16"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_the_file(tmp_path, text, message):
    with pytest.raises(SourceError, match=message):
        write(tmp_path, text)


def test_columns_may_hold_json(tmp_path):
    chat = Description.model_validate({"shape": "messages", "skill_bucket": "chat"}).root
    (tmp_path / "x.csv").write_text('messages\n"[{""role"": ""user"", ""content"": ""hi""}]"\n')
    good, _ = rows_of(tmp_path / "x.csv", chat)
    assert [spoken(row) for row in good] == [[("user", "hi")]]


def test_batches_end_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr("etl.sources.formats.delimited._BATCH_BYTES", 5)
    good, _ = write(tmp_path, "id,q,a,n\n" + "".join(f"{n},b,c,d\n" for n in range(20)))
    assert [row["position"] for row in good] == list(range(20))
