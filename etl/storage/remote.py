"""Opens file systems: schemes and their options, and messages for a store's failures.

Every error of a store becomes one of the four classes here, with one line that says the URL, what was wrong and what to
do. Values of options that may be secret are removed from a library's message. Options come from the recipe's `storage`
(by scheme), else from the store's usual chain and fsspec's own environment and files.

One request is tried three times by botocore (s3, at most 3 s of waiting), six times by gcsfs (gs, about 31 s) and
huggingface_hub (hf, 23 s) and four times by the Azure SDK (az); `etl.storage.retry` tries the whole operation again
above that. Listings are never cached but on the hub, where only commits are listed, and those do not change.
"""

import contextlib
import contextvars
import difflib
import errno
import functools
import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations

from etl.errors import ConfigError, DataError, StillhouseError
from etl.storage.retry import BUDGET_S, causes, code_of, is_passing, is_unreached, status_of, type_names
from etl.urls import check_url

Options = dict[str, Any]
"""fsspec options of one file system."""
Storage = dict[str, Options]
"""fsspec options by scheme."""

ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
EXTRAS = {"s3": "s3", "gs": "gcs", "az": "azure", "hf": "hub"}
"""Which extra of this package brings the file system of a scheme."""
BUCKETS = frozenset({"s3", "gs", "az"})
"""Schemes whose URLs begin with a bucket (or container) that must be there."""
READ_TIMEOUT_S = 30
CONNECT_TIMEOUT_S = 5
_REQUEST_TRIES = 3

_DEFAULTS: dict[str, Options] = {
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"mode": "standard", "total_max_attempts": _REQUEST_TRIES},
        },
    },
    "gs": {"use_listings_cache": False},
    "az": {"use_listings_cache": False},
}
_SECRET = re.compile(
    r"key|secret|token|passw|passphrase|credential|connection_string|sas|user|authorization|cookie|headers",
    re.IGNORECASE,
)
_PLACE = re.compile(r"endpoint|url|uri|host", re.IGNORECASE)
"""Options that say where a store is, which is told to users."""
_SHORTEST_SECRET = 3
_AUTHORITY = re.compile(r"://([^/@]*:)?([^/@]+)@")
"""The secret of a URL among the options, such as a proxy's."""
_REFUSED_CODES = frozenset({
    "AuthenticationFailed", "AuthorizationHeaderMalformed", "ExpiredToken", "InvalidAccessKeyId", "InvalidSecurity",
    "InvalidToken", "NotSignedUp", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired",
})  # fmt: skip
_NO_CREDENTIALS = frozenset({
    "azure.core.exceptions.ClientAuthenticationError", "botocore.exceptions.CredentialRetrievalError",
    "botocore.exceptions.NoCredentialsError", "botocore.exceptions.PartialCredentialsError",
    "botocore.exceptions.ProfileNotFound", "google.auth.exceptions.GoogleAuthError",
})  # fmt: skip
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_LIBRARIES = (
    "adlfs.", "aiohttp.", "azure.", "botocore.", "aiobotocore.", "gcsfs.", "google.", "httpx2.", "huggingface_hub.",
    "requests.", "s3fs.",
)  # fmt: skip
_NOT_SHOWN = frozenset({"huggingface_hub.errors.RepositoryNotFoundError", "huggingface_hub.errors.HFValidationError"})
"""What the hub says of a data set that is not there, and of one that this user may not see."""

_ambient: contextvars.ContextVar[Storage | None] = contextvars.ContextVar("storage", default=None)


def scheme_of(url: str) -> str:
    """The scheme of a URL, aliases resolved; `file` for a local path."""
    scheme, separator, _ = url.partition("://")
    return ALIASES.get(scheme, scheme) if separator else "file"


@contextlib.contextmanager
def storage_options(storage: Storage) -> Iterator[None]:
    """Within the block, URLs for which nobody gives options (models, descriptions) are opened with these."""
    token = _ambient.set(storage)
    try:
        yield
    finally:
        _ambient.reset(token)


def ambient_options(url: str) -> Options:
    """The options that hold for a URL within `storage_options`."""
    return (_ambient.get() or {}).get(scheme_of(url), {})


def check_scheme(scheme: str) -> str:
    """The scheme, aliases resolved.

    Raises:
        ConfigError: there is none of that name.
    """
    name = ALIASES.get(scheme, scheme)
    if name not in known_implementations and name not in fsspec.available_protocols():
        near = difflib.get_close_matches(
            name, ["s3", "s3a", "gs", "az", "abfs", "hdfs", "hf", "file", "https"], n=1, cutoff=0.5
        )
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(
            f"there is no storage scheme '{scheme}://'; {hint}use s3, gs, az, hdfs, hf, https or a local path"
        )
    return name


def check_storage(storage: Storage) -> Storage:
    """The options of a recipe by scheme, aliases resolved.

    Raises:
        ConfigError: an unknown scheme, or a secret that YAML has read as a number; no value is repeated.
    """
    checked: Storage = {}
    for name, options in storage.items():
        for option, value in options.items():
            if _SECRET.search(option) and isinstance(value, int | float) and not isinstance(value, bool):
                raise ConfigError(f"{name}.{option} must be text, but YAML reads it as a number; put it in quotes")
        check_places(name, options)
        checked.setdefault(check_scheme(name), {}).update(options)
    return checked


def check_places(where: str, options: Mapping[str, Any]) -> None:
    """Whether the URLs among options, such as an endpoint, are free of credentials.

    Raises:
        ConfigError: one holds some; they are not repeated.
    """
    for option, value in options.items():
        if isinstance(value, Mapping):
            check_places(f"{where}.{option}", value)
        elif isinstance(value, str) and _PLACE.search(option):
            try:
                check_url(value)
            except ConfigError as error:
                raise ConfigError(f"{where}.{option}: {error}") from error


def open_file_system(url: str, options: Options) -> Any:
    """The fsspec file system of a URL, one a process for equal options.

    Raises:
        ConfigError: unknown scheme, a package that is not installed, or options that it does not take.
    """
    scheme = scheme_of(url)
    if scheme == "file" and not options:
        return _disk()
    if scheme == "gs":
        # gcsfs logs a traceback of every failure; without a handler of the user's, Python would print it.
        logging.getLogger("gcsfs").addHandler(logging.NullHandler())
    try:
        file_system = fsspec.core.url_to_fs(url, **_merged(_DEFAULTS.get(scheme, {}), options))[0]
    except ImportError as error:
        check_scheme(scheme)
        extra = EXTRAS.get(scheme)
        what = f"pip install 'stillhouse[{extra}]'" if extra else "install what its fsspec file system needs"
        raise ConfigError(f"{url}: {scheme}:// needs a package that is not installed ({error}); {what}") from error
    except (ValueError, TypeError, KeyError) as error:
        check_scheme(scheme)
        raise ConfigError(
            f"{url}: cannot be opened ({_reason(error, options)}); check the options under `storage: {{{scheme}: …}}` "
            "and the environment"
        ) from error
    except OSError as error:
        if scheme != "hdfs":
            raise
        raise ConfigError(
            f"{url}: hdfs:// needs a Hadoop client ({_reason(error, options)[:120]}); set JAVA_HOME, HADOOP_HOME "
            "and CLASSPATH=$(hadoop classpath --glob)"
        ) from error
    if scheme == "s3":
        file_system.retries = 1
    if scheme == "hf":
        check_url(file_system.endpoint)
    return file_system


@functools.cache
def _disk() -> Any:
    """That of local paths: one for all, since every task asks for it many times."""
    return LocalFileSystem()


def _merged(defaults: Options, options: Options) -> Options:
    merged = {**defaults, **options}
    if isinstance(options.get("config_kwargs"), Mapping):
        merged["config_kwargs"] = {**defaults.get("config_kwargs", {}), **options["config_kwargs"]}
    return merged


def redact(text: str, options: Options) -> str:
    """The text without values of options that may be secret."""
    for value in sorted(_secrets(options), key=len, reverse=True):
        text = text.replace(value, "***")
    return text


def _secrets(options: Mapping[str, Any], inside: bool = False) -> set[str]:
    found: set[str] = set()
    for name, value in options.items():
        secret = inside or _SECRET.search(str(name)) is not None
        if isinstance(value, Mapping):
            found |= _secrets(value, secret)
        elif isinstance(value, list | tuple):
            for item in value:
                found |= _secrets({name: item}, secret)
        elif isinstance(value, str):
            found.update(pair[1] for pair in _AUTHORITY.findall(value))
            if secret:
                # `Bearer KEY` may be repeated without its first word.
                found.update({value, *value.split()})
    return {value for value in found if len(value) > _SHORTEST_SECRET}


def _reason(error: BaseException, options: Options) -> str:
    """What a library said, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return redact(text, options)[:300]


def explain(error: Exception, url: str, options: Options, verb: str) -> Exception:
    """What to raise for a failure of a store or disk; the error itself where callers tell it apart or it is a bug.

    Args:
        error: as the file system raised it.
        url: of the object.
        options: whose values are cut out of the message.
        verb: read, list, write or remove.
    """
    scheme = scheme_of(url)
    status, code = status_of(error), code_of(error)
    number = error.errno if isinstance(error, OSError) else None
    reason = _reason(error, options)
    names = {name for cause in causes(error) for name in type_names(cause)}
    if isinstance(error, StillhouseError):
        return error
    if scheme == "hf" and (status in (401, 403) or not names.isdisjoint(_NOT_SHOWN)):
        return ConfigError(
            f"{url}: the hub does not show it ({reason}); correct the name, or for a private or gated data set accept "
            "its terms on the hub and set HF_TOKEN (or storage.hf.token) to a token that may read it"
        )
    if code in ("NoSuchBucket", "ContainerNotFound") or (
        isinstance(error, FileNotFoundError) and verb == "write" and scheme in BUCKETS
    ):
        return no_bucket(url)
    if isinstance(error, FileNotFoundError):
        if verb == "write" and scheme == "file":
            return DataError(f"cannot write {url} ({reason}); give a folder that can be created")
        return error
    if isinstance(error, FileExistsError | IsADirectoryError | NotADirectoryError):
        return error if verb == "read" else DataError(f"cannot {verb} {url} ({reason}); a file is in the way, move it")
    if code in _REFUSED_CODES or status == 401 or not names.isdisjoint(_NO_CREDENTIALS):
        return ConfigError(
            f"{url}: the store does not accept the credentials ({reason}); correct them under "
            f"`storage: {{{scheme}: …}}`, in the environment or in the store's own files"
        )
    if _is_refusal(error):
        who = f"user {os.getuid()}" if scheme == "file" else "these credentials"
        return DataError(f"no permission to {verb} {url} ({reason}); give {who} permission, or choose another place")
    if number in _NO_ROOM or status == 507:
        return DataError(
            f"no space to {verb} {url} ({reason}); free some and run again, which resumes from the finished parts"
        )
    if is_unreached(error):
        place = "HF_ENDPOINT, HF_HUB_OFFLINE" if scheme == "hf" else "its endpoint_url"
        return ConfigError(f"{url}: the store cannot be reached ({reason}); check {place} and the network")
    if is_passing(error):
        return DataError(
            f"cannot {verb} {url}: the store still fails after {BUDGET_S:.0f} s of retries ({reason}); run again "
            "later to resume"
        )
    wrong = isinstance(error, TypeError | ValueError | KeyError) or "botocore.exceptions.ParamValidationError" in names
    if wrong and scheme != "file":
        # File systems accept unknown options at first and fail when they connect.
        return ConfigError(f"{url}: check the options under `storage: {{{scheme}: …}}` ({reason})")
    if isinstance(error, OSError) or any(name.startswith(_LIBRARIES) for name in names):
        return DataError(f"cannot {verb} {url} ({reason})")
    return error


def is_refused(error: BaseException) -> bool:
    """Whether an error came from an operation that the user, or the store as a whole, does not allow."""
    return any(_is_refusal(cause) for cause in causes(error))


def _is_refusal(error: BaseException) -> bool:
    number = error.errno if isinstance(error, OSError) else None
    return (
        isinstance(error, PermissionError)
        or status_of(error) == 403
        or number in _NOT_ALLOWED
        or (str(error).startswith("Forbidden"))
    )


def no_bucket(url: str) -> ConfigError:
    """What to raise for a bucket that is not there."""
    bucket = url.partition("://")[2].partition("/")[0]
    return ConfigError(f"{url}: there is no bucket '{bucket}'; create it, or correct the URL")
