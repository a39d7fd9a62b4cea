"""The Arrow schema of every table, and the few closed vocabularies in them.

A table is its parent plus columns: SCORE and TOKENIZED are *aligned* with PROMPT (same parts, row counts and
row-group boundaries) and repeat only `id`, which is how a zip of the two is checked. Types are those that Spark,
Beam, DuckDB and pyarrow all read: no float16, no uint64, no Parquet UUID. Inside stages an id is binary(16); in
CORPUS, DROPPED and KEPT it is the 36-character UUID text.
"""

from dataclasses import dataclass
from typing import Final, Literal, cast

import pyarrow as pa

SCHEMA_VERSION: Final = 0

SKILLS: Final = {
    "B1": "general reasoning",
    "B2": "math",
    "B3": "code",
    "B4": "helpful dialogue",
    "B5": "world knowledge",
}
"""The content of each skill bucket."""

FORMAL_SKILLS: Final = ("B2", "B3")
"""Maths and code, in which signs and layout matter."""

Skill = Literal["B1", "B2", "B3", "B4", "B5"]
"""A key of SKILLS."""

Encoding = Literal["dictionary", "byte_stream_split", "plain"]
"""How a column is stored: `dictionary` for most; `byte_stream_split` for token ids (1.31 bytes a token instead of 1.67,
and faster to read); `plain`, without compression, for hashes, which do not compress."""
_ENCODING: Final = b"stillhouse.encoding"
_ROLE: Final = b"stillhouse.role"


def encoded(field: pa.Field, encoding: Encoding) -> pa.Field:
    """The field with the encoding of its column in a part; readers do not notice it."""
    return field.with_metadata({**(field.metadata or {}), _ENCODING: encoding.encode()})


def encoding_of(field: pa.Field) -> Encoding:
    """The encoding that `encoded` has set for a column."""
    return cast(Encoding, (field.metadata or {}).get(_ENCODING, b"dictionary").decode())


def place(field: pa.Field) -> pa.Field:
    """The field as a place: where a row is (a row key, a file, a position), which is not part of its content.

    It is stored but not in the content digest, so that rows split in another way have the same digest.
    """
    return field.with_metadata({**(field.metadata or {}), _ROLE: b"place"})


def count(field: pa.Field) -> pa.Field:
    """The int64 field as a count: the row represents that many equal rows, also in the content digest."""
    return field.with_metadata({**(field.metadata or {}), _ROLE: b"count"})


@dataclass(frozen=True)
class Digested:
    """The columns of a table that its content digest does not take by value."""

    places: frozenset[str] = frozenset()
    """Columns to leave out."""
    count: str | None = None
    """The column with the number of rows that a row represents."""

    @classmethod
    def of(cls, schema: pa.Schema) -> "Digested":
        """The columns that `place` and `count` have marked."""
        roles = {field.name: (field.metadata or {}).get(_ROLE) for field in schema}
        counts = [name for name, role in roles.items() if role == b"count"]
        assert len(counts) <= 1, counts
        return cls(frozenset(name for name, role in roles.items() if role == b"place"), *counts)

    @classmethod
    def stored(cls, metadata: dict[bytes, bytes] | None) -> "Digested":
        """Read from the metadata of a part's schema."""
        found = metadata or {}
        places = found.get(b"stillhouse.places", b"").decode().split(",")
        counted = found.get(b"stillhouse.count", b"").decode()
        return cls(frozenset(places) - {""}, counted or None)

    def to_store(self) -> dict[str, str]:
        """For the metadata of a part's schema; empty if every column is taken by value."""
        told = {"stillhouse.places": ",".join(sorted(self.places)), "stillhouse.count": self.count or ""}
        return {key: value for key, value in told.items() if value}


SKILL_BUCKETS: Final = tuple(SKILLS)

CTX_BUCKETS: Final = {"C1": 4096, "C2": 8192, "C3": 16384, "C4": 32768}
"""Largest number of tokens of a rendered example in each context bucket."""

ROW_KEY: Final = place(pa.field("row", pa.int64(), nullable=False))
"""Split << 32 | row (`etl.rows.ROW_BITS`): the place of a row in the splits of a run."""

SPAN_KINDS: Final = ("analysis", "commentary", "final", "text")
"""Kinds of supervised runs of tokens. `text` is a raw document without turns."""

ROLES: Final = ("system", "developer", "user", "assistant", "tool")
TEXT_ROLE: Final = "text"
"""The role of the only message of a raw document."""

ID: Final = pa.binary(16)

MESSAGE: Final = pa.struct(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("channel", pa.string()),
        pa.field("recipient", pa.string()),
        pa.field("content", pa.string(), nullable=False),
        pa.field("content_type", pa.string()),
        pa.field("call_id", pa.string()),
    ]
)
"""One message, as openai-harmony knows it.

`recipient` is the target of a call (`functions.get_weather`), or the reader of a tool's message. `content_type` follows
the channel in a header, such as `<|constrain|>json` for a call with JSON content. `call_id` names a call within its
conversation; a tool's message has the `call_id` of the call that it answers. Null and "" mean none."""

SAID: Final = ("role", "channel", "recipient", "content")
"""The fields of MESSAGE that are always part of a row's id; the others are part of it if one has a value."""

CALL_JSON: Final = "<|constrain|>json"
"""The content type of a call whose content is JSON."""

VERDICT: Final = pa.struct([("step", pa.string()), ("reason", pa.string()), ("value", pa.string())])
"""Null until a step drops the row; then the step, the reason and the value that it judged."""

SPAN: Final = pa.struct(
    [
        ("kind", pa.string()),
        ("turn", pa.int32()),
        ("start", pa.int32()),
        ("content_start", pa.int32()),
        ("end", pa.int32()),
    ]
)
"""Half-open token range: `start` is the message's <|start|>, `content_start` its first content token, `end` is
after its closing token."""

RANGE: Final = pa.struct([("start", pa.int32()), ("end", pa.int32())])

REMOVED: Final = pa.field("removed", pa.list_(RANGE))
"""Byte ranges to remove from a raw document's content: ascending and disjoint. A side table with this column changes
the `messages` that steps read (etl/rows.py); no step sees the column itself."""

PROMPT: Final = pa.schema(
    [
        pa.field("id", ID, nullable=False),
        pa.field("source_dataset", pa.string(), nullable=False),
        pa.field("source_subset", pa.string()),
        pa.field("source_example_id", pa.string(), nullable=False),
        pa.field("license", pa.string()),
        pa.field("language", pa.string()),
        pa.field("split_key", pa.string(), nullable=False),
        pa.field("messages", pa.list_(MESSAGE), nullable=False),
        pa.field("skill_bucket", pa.string(), nullable=False),
        pa.field("meta_json", pa.string()),
        place(pa.field("file", pa.string())),
        place(pa.field("position", pa.int64())),
        pa.field("tools", pa.string()),
        pa.field("conversation_id", pa.string()),
        pa.field("expected_completion_tokens", pa.int32()),
        pa.field("bucket_rule", pa.string()),
        pa.field("verdict", VERDICT),
    ]
)
"""`file` and `position` say where the row was read: the file's path below the folder that the source's pattern starts
with, and the byte offset of the line (JSONL, after decompression) or the row number (Parquet); for a table, its name
and the row's number.

`tools` is the JSON of a list of function definitions, `{"name", "description", "parameters"}` each or OpenAI's
`{"type": "function", "function": {…}}` around it; null if there are none. `conversation_id` is that of the rows of
one conversation. `expected_completion_tokens` estimates the answer to a prompt that has none. `bucket_rule` names the
rule that chose `skill_bucket`. All three are null if the source gives none. `verdict` is ingest's own; a side table's
overrides it."""

PROMPT_CONTENT: Final = tuple(
    field.name for field in PROMPT if field.name not in {"verdict", *Digested.of(PROMPT).places}
)
"""The columns of PROMPT with the content of a row: all except its places and its verdict."""

REST_OF_ID: Final = (
    "split_key", "license", "language", "meta_json", "conversation_id", "expected_completion_tokens", "bucket_rule",
)  # fmt: skip
"""Columns of PROMPT that are neither in the id nor places: rows of one id can differ in them."""

QUARANTINE: Final = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_example_id", pa.string()),
        place(pa.field("file", pa.string(), nullable=False)),
        place(pa.field("position", pa.int64(), nullable=False)),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
        pa.field("raw", pa.binary()),
    ]
)
"""`file` and `position` as in PROMPT; `source_example_id` is null if the row's name could not be read."""

ASSEMBLED: Final = pa.schema(
    [
        pa.field("record", pa.binary()),
        pa.field("conversation", pa.string()),
        place(pa.field("file", pa.string(), nullable=False)),
        place(pa.field("position", pa.int64(), nullable=False)),
        pa.field("source_example_id", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("raw", pa.binary()),
    ]
)
"""A row made of several raw rows, or one that was not changed: its columns as a JSON object. Rows cut from one
conversation have the same `conversation` and follow one another, the whole last. A row with a `reason` is a raw one
that cannot be used; it has no record."""

DROPPED: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source_dataset", pa.string(), nullable=False),
        pa.field("source_example_id", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("step", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("value", pa.string()),
        PROMPT.field("file"),
        PROMPT.field("position"),
    ]
)
"""A row that a step dropped; `id` is a 36-character text, as in CORPUS."""

TOKENIZED_COLUMNS: Final = pa.schema(
    [
        encoded(pa.field("input_ids", pa.list_(pa.int32())), "byte_stream_split"),
        pa.field("n_tokens", pa.int32()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("n_analysis", pa.int32()),
        pa.field("n_commentary", pa.int32()),
        pa.field("n_final", pa.int32()),
        pa.field("n_text", pa.int32()),
        pa.field("spans", pa.list_(SPAN)),
        pa.field("reasoning_effort", pa.string()),
        pa.field("token_digest", pa.int64()),
    ]
)
"""What the Harmony step adds. `n_*` counts the tokens of a span kind, headers and closing tokens included."""

_RECORDED: Final = (
    "source_dataset", "source_subset", "source_example_id", "license", "language", "split_key", "messages", "meta_json",
)  # fmt: skip
"""The columns of PROMPT that the training record also has."""

CORPUS: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        *[PROMPT.field(name) for name in _RECORDED],
        ("prompt_text", pa.string()),
        ("prompt_tokens_est", pa.int32()),
        ("embedding", pa.list_(pa.float32())),
        ("cluster_id", pa.string()),
        ("near_dup_hash", pa.int64()),
        ("utility_score", pa.float64()),
        ("sampling_weight", pa.float64()),
        ("difficulty_proxy", pa.float64()),
        ("teacher_entropy", pa.float64()),
        ("teacher_margin", pa.float64()),
        ("student_teacher_kl", pa.float64()),
        ("lp_value", pa.float64()),
        ("analysis_span", RANGE),
        ("final_span", RANGE),
        *TOKENIZED_COLUMNS,
    ]
)
"""The training record. `split`, `skill_bucket` and `ctx_bucket` are in the path. Columns that no stage has filled are
null; `sampling_weight` is 1 unless a stage sets it. The remaining columns of PROMPT_CONTENT follow, then those that the
run's stages measured."""

PAIR: Final = pa.schema(
    [
        pa.field("a", pa.string(), nullable=False),
        pa.field("b", pa.string(), nullable=False),
        pa.field("jaccard", pa.float64(), nullable=False),
        pa.field("a_source", pa.string(), nullable=False),
        pa.field("b_source", pa.string(), nullable=False),
        pa.field("a_id", ID, nullable=False),
        pa.field("b_id", ID, nullable=False),
    ]
)
"""Two near duplicates by their source_example_id, the shorter and then smaller one first."""

CLUSTER_COLUMNS: Final = pa.schema(
    [
        pa.field("cluster_id", ID),
        pa.field("cluster_size", pa.int32()),
        pa.field("cluster_rank", pa.int32()),
        pa.field("cluster_jaccard", pa.float64()),
    ]
)
"""`cluster_id` is the id of the survivor (rank 0), `cluster_jaccard` the similarity to it. A row without a duplicate is
a cluster of its own; null for a row that was dropped earlier."""

KEPT: Final = pa.schema(
    [
        pa.field("source_dataset", pa.string(), nullable=False),
        pa.field("source_example_id", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("cluster_id", pa.string(), nullable=False),
        pa.field("cluster_size", pa.int32(), nullable=False),
        pa.field("cluster_rank", pa.int32(), nullable=False),
        pa.field("cluster_jaccard", pa.float64(), nullable=False),
        pa.field("kept", pa.bool_(), nullable=False),
    ]
)
"""A row that near dedup saw, its cluster, and whether it is kept; ids are 36-character texts."""

TEACHER_LOGP: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("completion_digest", pa.binary(16), nullable=False),
        pa.field("prompt_digest", pa.binary(16), nullable=False),
        pa.field("teacher_digest", pa.string(), nullable=False),
        pa.field("reasoning_mode", pa.string()),
        pa.field("temperature", pa.float64(), nullable=False),
        pa.field("prefix_tokens", pa.int32(), nullable=False),
        pa.field("logp", pa.list_(pa.float32()), nullable=False),
        pa.field("topk_ids", pa.list_(pa.int32())),
        pa.field("topk_logp", pa.list_(pa.float32())),
    ]
)
"""A teacher's scores of one corpus row: ln p of each supervised token, in span order, rounded to a float16 value.

`completion_digest` is of the supervised tokens, `prompt_digest` of the others without the line that names the reasoning
effort. `reasoning_mode` is that of the prompt as the teacher saw it (null for a raw document), `prefix_tokens` its
tokens before the first supervised one. `topk_*` have the same number of entries for each supervised token, token after
token, the most likely first; null if none were requested."""


def aligned(columns: pa.Schema) -> pa.Schema:
    """The schema of a side table: `id`, its columns, and the `verdict` of its stage."""
    return pa.schema([PROMPT.field("id"), *columns, pa.field("verdict", VERDICT)])
