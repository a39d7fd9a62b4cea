"""Schemes, options and errors: what a user reads, and that no secret is ever repeated."""

import errno
import pickle
import traceback

import pytest
from botocore.exceptions import ClientError, NoCredentialsError

from etl import conf
from etl.errors import ConfigError, DataError, StillhouseError
from etl.run.recipe import Recipe
from etl.storage import remote
from etl.storage.location import Location
from etl.storage.remote import explain, redact, scheme_of, storage_options
from etl.urls import check_url
from tests.etl.stages.toys import make_recipe

SECRET = "s3cr3t/Zx+9w8e7"


def answer(status: int, code: str = "", text: str = "") -> OSError:
    error = OSError(errno.EIO, text or code)
    error.__cause__ = ClientError(
        {"Error": {"Code": code or str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Put"
    )
    return error


@pytest.mark.parametrize(
    ("url", "scheme"),
    [("s3a://b/k", "s3"), ("gcs://b", "gs"), ("abfss://c/k", "az"), ("hdfs://h/p", "hdfs"), ("/a/b", "file")],
)
def test_schemes(url, scheme):
    assert scheme_of(url) == scheme


@pytest.mark.parametrize(
    "url",
    [
        f"s3://AKIA:{SECRET}@bucket/key", f"s3a://{SECRET[:6]}@bucket/key", f"gs://user:{SECRET}@bucket", f"s3://AKIA:{SECRET}",
        f"https://me:{SECRET}@host/file", f"hdfs://me:{SECRET}@host:8020/x", f"abfs://acc:{SECRET}@c/x",
        f"https://host/file?X-Amz-Signature={SECRET}", f"az://container/file?sv=1&sig={SECRET}",
    ],
)  # fmt: skip
def test_credentials_in_a_url_are_refused_and_not_repeated(url):
    with pytest.raises(ConfigError, match="contains credentials") as raised:
        Location.of(url)
    for path in ({"output": url}, {"sources": {"a": {"spec": "synth", "path": [url]}}}):
        with pytest.raises(ConfigError) as of_recipe:
            conf.check(Recipe, {"name": "n", "output": "o", "stages": [], "sources": {}} | path, "recipe")
        assert SECRET not in "".join(traceback.format_exception(of_recipe.value))
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a:b@c", "hdfs://host:8020/x", "hdfs://me@host:8020/x", "abfs://container@account.dfs.core.windows.net/x",
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/key", "/data/a:b@c", "s3://bucket/*?.parquet",
    ],
)  # fmt: skip
def test_other_urls_are_taken(url):
    check_url(url)


def test_a_scheme_that_is_none():
    with pytest.raises(ConfigError, match=r"there is no storage scheme 's4://'; did you mean 's3'"):
        Location.of("s4://bucket/key").exists()


def test_a_package_that_is_not_installed(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(remote.fsspec.core, "url_to_fs", missing)
    with pytest.raises(ConfigError, match=r"pip install 'stillhouse\[s3\]'"):
        Location.of("s3a://bucket/key").exists()
    with pytest.raises(ConfigError, match=r"pip install 'stillhouse\[gcs\]'"):
        Location.of("gs://bucket/key").exists()


OPTIONS = {
    "key": "AKIAXYZ",
    "secret": SECRET,
    "client_kwargs": {"aws_session_token": SECRET[::-1]},
    "token": {"a": "1"},
}

TOLD = [
    (answer(404, "NoSuchBucket"), "read", ConfigError, "there is no bucket 'bucket'; create it"),
    (FileNotFoundError("x"), "write", ConfigError, "there is no bucket 'bucket'"),
    (answer(403, "SignatureDoesNotMatch"), "write", ConfigError, "does not accept the credentials"),
    (answer(403, "InvalidAccessKeyId"), "list", ConfigError, "does not accept the credentials"),
    (answer(401), "list", ConfigError, "does not accept the credentials"),
    (NoCredentialsError(), "list", ConfigError, "Unable to locate credentials"),
    (answer(403, "AccessDenied"), "write", DataError, "no permission to write s3://bucket/key"),
    (answer(507), "write", DataError, "no space to write"),
    (answer(503, "SlowDown"), "read", DataError, "still fails after 120 s"),
    (ConnectionRefusedError("refused"), "read", ConfigError, "cannot be reached"),
    (TypeError("unexpected keyword 'endpoint'"), "read", ConfigError, "check the options under"),
    (answer(400, "Odd", f"what is {SECRET}"), "read", DataError, r"cannot read s3://bucket/key \(.*\*\*\*\)"),
]


@pytest.mark.parametrize(("error", "verb", "kind", "text"), TOLD, ids=lambda value: repr(value)[:40])
def test_what_a_store_says_becomes_one_line(error, verb, kind, text):
    told = explain(error, "s3://bucket/key", OPTIONS, verb)
    with pytest.raises(kind, match=text):
        raise told
    assert "\n" not in str(told)
    assert SECRET not in str(told)
    again = pickle.loads(pickle.dumps(told))
    assert (type(again), str(again)) == (type(told), str(told))


@pytest.mark.parametrize("error", [FileNotFoundError("x"), AssertionError("a bug"), DataError("told")])
def test_what_is_for_the_caller_or_a_bug_stays(error):
    assert explain(error, "s3://bucket/key", OPTIONS, "read") is error


LOCAL = [
    (OSError(errno.ENOSPC, "No space left on device"), "no space to write /data/x .*free some and run again"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space to write /data/x"),
    (PermissionError(errno.EACCES, "Permission denied"), "no permission to write /data/x .*give user"),
    (OSError(errno.EROFS, "Read-only file system"), "no permission to write /data/x"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory"), "a file is in the way"),
    (OSError(errno.EIO, "Input/output error"), "cannot write /data/x"),
]


@pytest.mark.parametrize(("error", "text"), LOCAL, ids=repr)
def test_what_a_disk_says_becomes_one_line(error, text):
    with pytest.raises(DataError, match=text):
        raise explain(error, "/data/x", {}, "write")


def test_values_that_may_be_secret_are_cut_out_wherever_they_stand():
    text = f"AKIAXYZ {SECRET} {SECRET[::-1]} eu-west-1"
    assert redact(text, OPTIONS | {"region": "eu-west-1"}) == "*** *** *** eu-west-1"


def test_a_recipe_does_not_show_its_options(tmp_path):
    recipe = make_recipe("s3://b/x", {"toy": "s3://b/in"}, storage={"s3a": OPTIONS})
    assert recipe.storage == {"s3": OPTIONS}
    assert recipe.place == Location("s3://b/x", OPTIONS)
    for text in (repr(recipe), str(recipe), repr(recipe.sources), repr(recipe.place), str(recipe.fingerprinted())):
        assert SECRET not in text
    assert recipe.fingerprinted() == make_recipe("/y", {"toy": "s3://b/in"}, single_writer=True).fingerprinted()


def test_a_sources_own_options_win():
    tree = {"spec": "synth", "path": "gs://b/in", "options": {"project": "mine"}}
    storage = {"gs": {"project": "all", "token": "anon"}, "s3": {"key": "k"}}
    recipe = make_recipe("s3://b/x", {"toy": "p"}, storage=storage)
    recipe = Recipe.model_validate({**recipe.model_dump(), "sources": {"toy": tree}})
    assert recipe.sources["toy"].locate("gcs://b/in/1", storage).options == {"project": "mine", "token": "anon"}
    assert recipe.sources["toy"].locate("/in/1", storage).options == {"project": "mine"}


WRONG = [
    (f"storage={SECRET}", "storage"),
    (f"storage.s3={SECRET}", r"storage\.s3"),
    (f"storage.s3=[{SECRET}", r"storage\.s3"),
    (f"storage.s3.secret.x={SECRET}", "s3"),
    ("storage.s3.secret=8123456789", r"s3\.secret must be text, but YAML reads it as a number"),
    (f"storage.s4.secret={SECRET}", "there is no storage scheme 's4://'"),
    (f"sources.toy.options={SECRET}", r"sources\.toy\.options"),
]


@pytest.mark.parametrize(("override", "text"), WRONG, ids=lambda value: value[:24])
def test_a_wrong_value_is_told_without_its_value(tmp_path, override, text):
    path = tmp_path / "recipe.yaml"
    storage = f"storage: {{s3: {{secret: '{SECRET}'}}}}"
    path.write_text(f"name: n\noutput: o\nstages: []\nsources: {{toy: {{spec: synth, path: p}}}}\n{storage}\n")
    with pytest.raises(ConfigError, match=text) as raised:
        conf.load(Recipe, str(path), "recipes", [override])
    assert SECRET not in str(raised.value)
    assert "8123456789" not in str(raised.value)


@pytest.mark.parametrize("secret", [f"*{SECRET}", f"!{SECRET}", f"[{SECRET}", f"{SECRET} #1"])
def test_a_secret_with_signs_of_yaml_is_text(secret):
    overrides = ["output=o", "sources.synth.path=p", f"storage.s3.secret={secret}"]
    assert conf.load(Recipe, "synth", "recipes", overrides).storage == {"s3": {"secret": secret}}


def test_options_hold_for_what_has_none_within_the_block():
    with storage_options({"memory": {"a": 1}}):
        assert Location.of("memory://x").options == {"a": 1}
        assert Location.of("memory://x", {"b": 2}).options == {"b": 2}
        assert Location.of("/x").options == {}
    assert Location.of("memory://x").options == {}


def test_errors_are_of_our_four_classes():
    assert all(issubclass(kind, StillhouseError) for _, _, kind, _ in TOLD)
