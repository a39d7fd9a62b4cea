"""WARC and WET: which records are rows, what their text is, what is left out, and damage."""

import contextlib
import gzip

import brotli
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.errors import ConfigError, SourceError
from etl.sources.files import cut, list_files
from etl.sources.formats import pages, warc
from etl.sources.raw import Tally
from etl.sources.read import read_split
from etl.sources.row_groups import Limits
from etl.sources.spec import Description, Source
from tests.etl.sources.test_damage import CHANGES, PACK, damaged

WEB = Source(spec="web", path="x").shape()
PAGE = "<html><head><title>t</title></head><body><main><p>Grüße &amp; <b>ein</b> Wort.</p></main></body></html>"


def record(block=b"", kind="response", number=0, url="http://a/", **headers):
    """A record; `headers` with _ for -."""
    if kind == "response":
        headers.setdefault("Content_Type", "application/http; msgtype=response")
    named = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number}>\r\nWARC-Date: 2024-01-02T03:04:05Z\r\n"
        f"WARC-Target-URI: {url}\r\n{named}Content-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def http(body, kind="text/html; charset=utf-8", status=200, **headers):
    body = body.encode() if isinstance(body, str) else body
    named = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    kind = f"Content-Type: {kind}\r\n" if kind else ""
    return f"HTTP/1.1 {status} X\r\n{kind}{named}\r\n".encode() + body


def read(path, html="raw", max_row_bytes=10_000, shape=WEB):
    """(PROMPT rows, [(position, reason)] of the bad ones, what is left out)."""
    source = Source(spec="web", path=str(path), html=html)
    good, bad, tally = [], [], Tally()
    for split in cut("toy", source, list_files("toy", source, {}), 1, {}):
        for batch, lost in read_split(source, shape, split, {}, Limits(row_bytes=max_row_bytes), tally):
            good += batch.to_pylist()
            bad += [(row.position, row.reason) for row in lost]
    return good, bad, dict(tally.left_out)


def texts(tmp_path, *blocks, **options):
    """The text of each page of a file, or the reason why it is none."""
    records = [record(block, number=number) for number, block in enumerate(blocks)]
    (tmp_path / "x.warc").write_bytes(b"".join(records))
    good, bad, _ = read(tmp_path / "x.warc", **options)
    at = {sum(map(len, records[:number])): number for number in range(len(records))}
    found = {at[row["position"]]: row["messages"][0]["content"] for row in good}
    return [found[number] if number in found else dict(bad)[place] for place, number in at.items()]


def test_pages_are_rows_and_the_rest_is_counted(tmp_path):
    data = [
        record(b"software: x", "warcinfo"),
        record(b"GET / HTTP/1.1\r\n\r\n", "request"),
        record(http(PAGE), number=1, url="<http://a/1>"),
        record(http(b"\x89PNG", "image/png"), number=2),
        record(http("gone", status=404), number=3),
        record(http("?", kind=None), number=4),
        record(b"a: b", "metadata"),
        record("schön".encode(), "conversion", 5, Content_Type="text/plain", WARC_Identified_Content_Language="deu"),
        record(b"<p>x", "resource", 6, Content_Type="text/html"),
        record(b"log", "resource", 7, "metadata://wget.log", Content_Type="text/plain"),
        record(b"", "revisit", 8),
    ]
    (tmp_path / "x.warc").write_bytes(b"".join(data))
    good, bad, left_out = read(tmp_path)
    assert [(row["source_example_id"], row["messages"][0]["content"], row["language"]) for row in good] == [
        ("<urn:uuid:1>", PAGE, None), ("<urn:uuid:5>", "schön", "deu"), ("<urn:uuid:6>", "<p>x", None)
    ]  # fmt: skip
    assert good[0]["meta_json"] == (
        '{"content_type":"text/html; charset=utf-8","date":"2024-01-02T03:04:05Z","url":"http://a/1"}'
    )
    assert (good[0]["position"], bad) == (len(data[0] + data[1]), [])
    assert left_out == {
        "warcinfo": 1, "request": 1, "metadata": 1, "revisit": 1, "response of type image": 1,
        "response with HTTP status 404": 1, "response without a known type": 1, "resource that is not from the web": 1,
    }  # fmt: skip


@pytest.mark.parametrize("ending", ["", *PACK])
def test_every_compression_and_many_members(tmp_path, ending):
    pack = PACK.get(ending, bytes)
    members = [pack(record(http(PAGE), number=number)) for number in range(5)]
    (tmp_path / f"x.warc{ending}").write_bytes(b"".join(members))
    (tmp_path / ".hidden.warc").write_bytes(members[0])
    good, bad, _ = read(tmp_path)
    assert [row["source_example_id"] for row in good] == [f"<urn:uuid:{number}>" for number in range(5)]
    assert bad == []


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"6\r\nhello \r\n5;x=y\r\nworld\r\n0\r\n\r\n", {"Transfer_Encoding": "chunked"}),
        (b"hello world", {"Transfer_Encoding": "chunked"}),
        (gzip.compress(b"hello world"), {"Content_Encoding": "gzip"}),
        (b"hello world", {"Content_Encoding": "gzip"}),
        (brotli.compress(b"hello world"), {"Content_Encoding": "br"}),
        (zstd.compress(b"hello world"), {"Content_Encoding": "zstd"}),
        (b"hello world", {"Content_Encoding": "identity"}),
    ],
)
def test_encodings_are_undone_unless_the_crawler_has(tmp_path, body, headers):
    assert texts(tmp_path, http(body, **headers)) == ["hello world"]


def test_what_cannot_be_unpacked_is_a_bad_row(tmp_path):
    packed = gzip.compress(b"hello world" * 100)
    blocks = [
        http(packed[:-9], Content_Encoding="gzip"),
        http(packed[:30] + b"\xff" * 30, Content_Encoding="gzip"),
        http(b"x", Content_Encoding="br"),
        http(b"x", Content_Encoding="rot13"),
        http(b"5\r\nhel", Transfer_Encoding="chunked"),
        b"no http",
        http("fine"),
    ]
    assert texts(tmp_path, *blocks) == ["undecodable"] * 4 + ["cut_short", "invalid_http", "fine"]


def test_a_page_that_the_crawler_cut_is_a_row(tmp_path):
    block = http(b"9\r\nhel", Transfer_Encoding="chunked")
    (tmp_path / "x.warc").write_bytes(record(block, WARC_Truncated="length"))
    good, _, _ = read(tmp_path / "x.warc")
    assert good[0]["messages"][0]["content"] == "hel"


@pytest.mark.parametrize(
    ("data", "kind", "expected"),
    [
        ("größe".encode("latin-1"), "text/html; charset=ISO-8859-1", "größe"),
        ("größe€".encode("cp1252"), 'text/html;charset="latin1"', "größe€"),
        ("<meta charset=shift_jis>日本".encode("shift_jis"), "text/html", "<meta charset=shift_jis>日本"),
        ("größe".encode(), "text/html; charset=nonsense", "größe"),
        ("größe".encode("cp1252") * 20, "text/html; charset=utf-8", "größe" * 20),
        ("größe".encode("utf-16"), "text/html; charset=utf-8", "größe"),
        (b"\xef\xbb\xbfhi", "text/plain; charset=latin1", "hi"),
        ("größe".encode(), "text/plain", "größe"),
    ],
)
def test_character_sets(data, kind, expected):
    assert pages.decoded(data, kind, kind.startswith("text/html")) == expected


def test_text_without_a_character_set_is_a_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "_charsets", lambda *_: iter(["utf-8", "ascii"]))
    assert texts(tmp_path, http(b"\xff\xfe\x00"), http("fine")) == ["undecodable", "fine"]


@pytest.mark.parametrize("html", ["resiliparse", "trafilatura"])
def test_text_is_taken_out_of_html(tmp_path, html):
    (text,) = texts(tmp_path, http(PAGE), html=html)
    assert text.strip() == "Grüße & ein Wort."


def test_a_page_of_very_deep_elements_is_a_bad_row(tmp_path):
    deep = "<div>" * (pages.MAX_DEPTH + 1) + "x"
    lists = "<ul>" + "<li><p>x" * (pages.MAX_DEPTH + 1) + "</ul>"
    found = texts(tmp_path, http(deep), http(lists), html="resiliparse", max_row_bytes=100_000)
    assert found[0] == "too_deep"
    assert found[1] != "too_deep"


def test_a_page_that_is_too_long_is_a_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(warc, "_HEAD_BYTES", 200)
    packed = http(gzip.compress(b"x" * 5000), Content_Encoding="gzip")
    blocks = [http("x" * 500), http("x" * 501), http("x" * 5000), packed, http("fine")]
    assert texts(tmp_path, *blocks, max_row_bytes=500) == ["x" * 500, "too_long", "too_long", "too_long", "fine"]


def test_a_file_that_is_cut_inside_a_record_is_an_error(tmp_path):
    data = record(http(PAGE), number=0) + record(b"x" * 50, "request") + record(b"text", "conversion", 1)
    borders = [len(record(http(PAGE))), len(record(http(PAGE)) + record(b"x" * 50, "request"))]
    for end in range(0, len(data) - 4, 7):
        if any(border - 4 <= end <= border for border in (0, *borders)):
            continue
        (tmp_path / "x.warc").write_bytes(data[:end])
        with pytest.raises(SourceError, match=r"x\.warc"):
            read(tmp_path / "x.warc")


@pytest.mark.parametrize(
    "data", [b"hello\n" * 9, record(b"a", "conversion") + b"junk\r\n" + record(b"a", "conversion")]
)
def test_what_is_no_warc_is_an_error(tmp_path, data):
    (tmp_path / "x.warc").write_bytes(data)
    with pytest.raises(SourceError, match=r"x\.warc cannot be read to its end"):
        read(tmp_path / "x.warc")


def test_a_package_that_is_not_there_is_an_error_that_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "x.wet").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "trafilatura" else name)
    assert read(tmp_path / "x.wet") == ([], [], {})
    with pytest.raises(ConfigError, match=r"stillhouse\[trafilatura\]"):
        read(tmp_path / "x.wet", html="trafilatura")


@pytest.mark.shared
def test_real_files(shared_data):
    folder = shared_data / "commoncrawl_sample"
    good, bad, left_out = read(folder / "sample-0000.warc.gz", "resiliparse", 10_000_000)
    assert (len(good), len(bad), left_out["request"]) == (22, 0, 22)
    (page,), _, _ = read(folder / "whirlwind.warc.gz", "resiliparse", 10_000_000)
    (plain,), _, _ = read(folder / "whirlwind.warc.wet.gz", "resiliparse", 10_000_000)
    assert page["messages"][0]["content"].split()[0] in plain["messages"][0]["content"]
    documents = Description.model_validate({"shape": "text", "text": "text", "skill_bucket": "chat"}).root
    assert len(read(folder / "whirlwind.warc.gz", "raw", 10_000_000, documents)[0]) == 1


SOUND = [record(http(PAGE)), record(b"x" * 50, "request"), record(b"text", "conversion", 1, Content_Type="text/plain")]


@pytest.mark.parametrize("ending", PACK)
def test_a_packed_file_that_is_cut_is_an_error_unless_between_members(tmp_path, ending):
    members = [PACK[ending](one) for one in SOUND]
    data = b"".join(members)
    rows = {len(b"".join(members[:count])): count - (count > 1) for count in (1, 2, 3)}
    path = tmp_path / f"x.warc{ending}"
    for end in {*range(0, len(data), 11), *rows}:
        path.write_bytes(data[:end])
        if end in rows:
            assert len(read(path)[0]) == rows[end]
        else:
            with pytest.raises(SourceError, match=r"x\.warc"):
                read(path)


@settings(max_examples=100)
@given(changes=CHANGES, html=st.sampled_from(["raw", "resiliparse"]))
def test_a_damaged_file_is_rows_bad_rows_or_an_error(tmp_path_factory, changes, html):
    path = tmp_path_factory.mktemp("damage") / "x.warc"
    path.write_bytes(damaged(b"".join(SOUND * 3), changes))
    with contextlib.suppress(SourceError):
        read(path, html)
