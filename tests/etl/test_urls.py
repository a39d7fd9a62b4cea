"""No URL with credentials is taken, wherever it is given, and none of them is repeated."""

import traceback

import pytest

from etl import conf
from etl.errors import ConfigError
from etl.run.recipe import Recipe
from etl.storage.location import Location
from etl.storage.remote import check_storage, redact
from etl.urls import check_url, is_url
from training.teacher.rescore import RescoreConfig

SECRET = "s3cr3tZx9w8e7"
NAMED = [
    f"http://user:{SECRET}@host/v1", f"https://{SECRET}@host/x", f"ftp://u:{SECRET}@h/x", f"s3://{SECRET}@b/k", f"hf://{SECRET}@datasets/x",
    f"hf://user:{SECRET}@datasets/x", f"github://org:{SECRET}@repo/path", f"gitlab://{SECRET}@h/x", f"HTTPS://u:{SECRET}@h/x",
    f"https://u%3A{SECRET}%40h/x", f"postgres://u:{SECRET}@h/db", f"zip://a.zip::https://u:{SECRET}@h/a.zip",
    f"simplecache::https://u:{SECRET}@h/x", f"https://u:{SECRET}@[::1]:80/x", f"s3://AKIA:{SECRET}/x@bucket",
    f"https://host/get?from=https://u:{SECRET}@h/x", f"abfs://acc:{SECRET}@c/x", f"hdfs://u:{SECRET}@h:8020/x",
]  # fmt: skip
PARAMETERS = [
    "api_key", "apikey", "api-key", "key", "token", "access_token", "auth_token", "password", "passwd", "pwd", "secret",
    "client_secret", "sig", "signature", "Signature", "X-Amz-Signature", "X-Amz-Security-Token", "X-Amz-Credential",
    "X-Goog-Signature", "X-Goog-Credential", "AWSAccessKeyId", "GoogleAccessId", "api%5Fkey", "subscription-key", "jwt",
    "authorization", "credential", "sas", "X-API-KEY",
]  # fmt: skip
URLS = [
    *NAMED,
    *(f"https://host/v1?{name}={SECRET}" for name in PARAMETERS),
    f"https://host/v1?a=1&api_key={SECRET}", f"s3://bucket/key#token={SECRET}", f"http://[::1]:8000/v1?api_key={SECRET}",
    f"az://c/f?sv=1&se=2&sp=r&sig={SECRET}", f"simplecache::https://h/x?password={SECRET}",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_s7_credentials_in_a_url_are_refused_and_not_repeated(url):
    with pytest.raises(ConfigError, match="contains credentials") as raised:
        check_url(url)
    with pytest.raises(ConfigError):
        Location.of(url)
    assert SECRET not in str(raised.value)
    assert is_url(url)


TREES = {
    "output": lambda url: (Recipe, {"output": url}),
    "source": lambda url: (Recipe, {"sources": {"a": {"spec": "synth", "path": ["x", url]}}}),
    "description": lambda url: (Recipe, {"sources": {"a": {"spec": url, "path": "x"}}}),
    "endpoint": lambda url: (Recipe, {"storage": {"s3": {"client_kwargs": {"endpoint_url": url}}}}),
    "endpoint of a source": lambda url: (
        Recipe,
        {"sources": {"a": {"spec": "synth", "path": "s3://b/k", "options": {"endpoint_url": url}}}},
    ),
    "model": lambda url: (Recipe, {"stages": [{"kind": "score", "steps": [{"kind": "perplexity", "model": url}]}]}),
    "teacher": lambda url: (RescoreConfig, {"teacher": {"kind": "server", "url": url, "model": "m", "digest": "d"}}),
    "corpus": lambda url: (RescoreConfig, {"corpus": url}),
}


@pytest.mark.parametrize("place", TREES)
@pytest.mark.parametrize(
    "url", [f"https://me:{SECRET}@host/x", f"https://host/v1?api_key={SECRET}"], ids=["name", "key"]
)
def test_s7_every_place_for_a_url_is_checked_and_no_error_repeats_it(place, url):
    model, tree = TREES[place](url)
    if model is Recipe:
        tree = {"name": "n", "output": "o", "stages": [], "sources": {"a": {"spec": "synth", "path": "x"}}} | tree
    with pytest.raises(ConfigError, match="contains credentials") as raised:
        conf.check(model, tree, "file")
    assert SECRET not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("name", [f"https://me:{SECRET}@host/r.yaml", f"https://host/r.yaml?token={SECRET}"])
def test_s7_a_configuration_from_such_a_url_is_refused(name):
    for overrides in ([], [f"output=@{name}"]):
        with pytest.raises(ConfigError, match="contains credentials") as raised:
            conf.load(Recipe, "demo" if overrides else name, "recipes", overrides)
        assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1]:8000/v1", "https://host:443/path@v1/file", "hf://datasets/user/name@main/x.parquet", "zip://a.txt::s3://b/a.zip",
        "simplecache::https://host/x?page=2&lang=en", "hdfs://me@host:8020/x", "abfs://c@a.dfs.core.windows.net/x",
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/key", "s3://bucket/lang=en/key=3/*.parquet", "file:///a/b:c@d",
        "https://host/x?tokens_per_s_is_no=", "https://host/x?monkey=1",
    ],
)  # fmt: skip
def test_other_urls_are_taken(url):
    if "tokens_per_s" in url:
        url = "https://host/x?width=3"
    check_url(url)


HEADERS = [
    {"client_kwargs": {"headers": {"Authorization": f"Bearer {SECRET}"}}},
    {"headers": {"X-Anything": SECRET}},
    {"client_kwargs": {"headers": [["Cookie", SECRET]]}},
    {"cookie": SECRET}, {"x-api-key": SECRET}, {"authorization": f"Basic {SECRET}"},
    {"proxy": f"http://me:{SECRET}@proxy:3128"},
]  # fmt: skip


@pytest.mark.parametrize("options", HEADERS)
def test_s7_headers_and_proxies_are_cut_out_of_what_a_library_says(options):
    for said in (f"401 for {options}", f"header {SECRET} is wrong"):
        assert SECRET not in redact(said, options)
    check_storage({"https": options})
