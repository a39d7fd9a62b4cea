"""Files on the Hugging Face hub: what a URL and a description name there, and the commit that a revision stands for.

A branch moves while a run reads, so nothing is listed or read by its name: a revision becomes a commit first, and every
later request names that. One request for each revision, on the driver; workers ask for the commit by its name.
`huggingface_hub` (extra `hub`) does the requests. Its file system takes HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE from
the environment, or `endpoint` and `token` under `storage.hf`, and keeps no file on the disk: bytes are read by ranges.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import quote, unquote

from pydantic import AfterValidator, Field, StringConstraints

from etl.config import Config
from etl.errors import ConfigError
from etl.storage.location import Location
from etl.storage.remote import Options, explain, scheme_of
from etl.storage.retry import persist, type_names

SCHEME: Final = "hf"
MAIN: Final = "main"
"""The branch that is read where nobody names a revision."""
ENDPOINT_VARIABLE: Final = "HF_ENDPOINT"
_URL: Final = re.compile(
    r"hf://(?P<repo>((datasets|models|spaces)/|(?!(datasets|models|spaces)/))[^/@]+/[^/@]+)"
    r"(@(?P<revision>refs/(convert|pr)/[^/]+|[^/@]+))?(/(?P<path>.*))?"
)
_BUCKET: Final = "hf://buckets/"
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_KINDS: Final = {"datasets": "dataset", "spaces": "space", "models": "model"}
_NO_REVISION: Final = "huggingface_hub.errors.RevisionNotFoundError"


class Hub(Config):
    """Where a data set lies on the Hugging Face hub."""

    id: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
    """OWNER/NAME."""
    files: str | tuple[str, ...] = Field(min_length=1)
    """Paths and globs in it, of the one configuration and split that the description reads."""
    config: str | None = None
    """What the hub calls the configuration; null where there is one alone."""
    split: str | None = None
    """What the hub calls the split; null where the files hold all of them."""
    revision: str = Field(default=MAIN, min_length=1)
    """Branch, tag or commit that is read where the recipe names none."""

    def urls(self, revision: str | None) -> tuple[str, ...]:
        """The files as hf:// URLs; `revision` in the place of the description's."""
        files = (self.files,) if isinstance(self.files, str) else self.files
        return tuple(f"{self.root(revision)}/{pattern}" for pattern in files)

    def root(self, revision: str | None) -> str:
        """The URL of the data set itself."""
        return f"hf://datasets/{self.id}@{quote(revision or self.revision, safe='')}"

    @property
    def label(self) -> str:
        """`OWNER/NAME`, with configuration and split where they are named."""
        return " ".join(filter(None, (self.id, self.config, self.split)))


@dataclass(frozen=True)
class Repo:
    """A hf:// URL in its parts."""

    name: str
    """datasets/OWNER/NAME."""
    revision: str
    """As it is written, `main` where none is."""
    path: str

    @property
    def root(self) -> str:
        """The URL of the data set at this revision."""
        return f"hf://{self.name}@{self.revision}"

    @property
    def is_commit(self) -> bool:
        """Whether the revision can never mean other files."""
        return _COMMIT.fullmatch(self.revision) is not None

    def at(self, commit: str) -> str:
        """The URL with a commit in the place of the revision."""
        return f"hf://{self.name}@{commit}" + (f"/{self.path}" if self.path else "")


def repo_of(url: str) -> Repo | None:
    """The parts of a hf:// URL; None for a URL of another scheme, and for a bucket, which has no revisions.

    Raises:
        ConfigError: it is not of the form hf://datasets/OWNER/NAME@REVISION/GLOB.
    """
    if scheme_of(url) != SCHEME or "::" in url or url.startswith(_BUCKET):
        return None
    found = _URL.fullmatch(url)
    if found is None:
        raise ConfigError(f"{url} names no data set; write hf://datasets/OWNER/NAME@REVISION/GLOB")
    return Repo(found["repo"], found["revision"] or MAIN, (found["path"] or "").rstrip("/"))


def _is_moving(url: str) -> str:
    try:
        repo = repo_of(url)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    if repo is None or repo.root != url:
        raise ValueError("must be hf://datasets/OWNER/NAME@REVISION")
    return url


Revisions = dict[
    Annotated[str, AfterValidator(_is_moving)], Annotated[str, StringConstraints(pattern=f"^{_COMMIT.pattern}$")]
]
"""hf://datasets/OWNER/NAME@REVISION -> the commit that it stands for."""


def commits_of(urls: tuple[str, ...]) -> list[str]:
    """`datasets/OWNER/NAME@COMMIT` of URLs that name a commit, each once."""
    repos = filter(None, map(repo_of, urls))
    return sorted({f"{repo.name}@{repo.revision}" for repo in repos if repo.is_commit})


def resolve(repo: Repo, options: Options) -> str:
    """The commit that a revision stands for now: 40 hexadecimal digits.

    Args:
        repo: whose revision it is.
        options: of `storage.hf` and the source.

    Raises:
        ConfigError: huggingface_hub is not installed, the hub cannot be reached, or shows no such data set or revision.
        DataError: the hub still fails after some time.
    """
    fs = Location(repo.root, options).fs
    from huggingface_hub import HfApi

    kind, _, rest = repo.name.partition("/")
    name, kind = (rest, _KINDS[kind]) if kind in _KINDS else (repo.name, "model")
    api = HfApi(endpoint=fs.endpoint, token=fs.token)
    try:
        found = persist(
            lambda: api.repo_info(name, repo_type=kind, revision=unquote(repo.revision), timeout=10).sha,
            f"{SCHEME} {fs.endpoint}",
        )
    except Exception as error:
        if _NO_REVISION in type_names(error):
            raise ConfigError(
                f"{repo.root}: there is no revision '{unquote(repo.revision)}'; name a branch, a tag or a commit"
            ) from error
        raise explain(error, repo.root, options, "read") from error
    if found is None or _COMMIT.fullmatch(found) is None:
        raise ConfigError(f"{repo.root}: {fs.endpoint} names no commit for it; check {ENDPOINT_VARIABLE}")
    return str(found)
