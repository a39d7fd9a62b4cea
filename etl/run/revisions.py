"""Which commits of the hub a run reads: those that an earlier run in its output found, else the current ones.

`pinned` gives every source of a recipe a path. A path on the hub then names a commit, so driver and workers list and
read the same files; the commits are in the recipe and so in `_run.json`. A branch that moves between two starts does
not affect the second one. An edited revision has another name there and is looked up again.

Costs one request for each revision that is not known yet, and a GET of `_run.json` where a source is on the hub.
"""

import posixpath
from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from etl.errors import ConfigError, DataError
from etl.run.recipe import Recipe
from etl.sources.hub import Repo, Revisions, repo_of, resolve
from etl.sources.spec import Source
from etl.storage.location import Location
from etl.storage.record import RECORD, read_record
from etl.storage.remote import Storage, scheme_of

_REVISIONS = TypeAdapter[dict[str, str]](Revisions)


def pinned(recipe: Recipe) -> Recipe:
    """The recipe with a path for every source of files, those on the hub at a commit.

    Raises:
        ConfigError: a source names no files, or a revision is not known and cannot be looked up.
        DataError: the record of an earlier run is damaged, or the hub still fails after some time.
    """
    paths = {name: _paths(name, source) for name, source in recipe.sources.items()}
    repos = {name: [repo for repo in map(repo_of, urls) if repo is not None] for name, urls in paths.items()}
    moving = {name: [repo for repo in found if not repo.is_commit] for name, found in repos.items()}
    commits = _commits(recipe, {name: found for name, found in moving.items() if found})
    sources = {name: _pinned(source, paths[name], commits) for name, source in recipe.sources.items()}
    return recipe.model_copy(update={"sources": sources, "revisions": commits})


def _pinned(source: Source, paths: tuple[str, ...], commits: Mapping[str, str]) -> Source:
    if not paths:
        return source
    at = []
    for path in paths:
        repo = repo_of(path)
        at.append(path if repo is None or repo.is_commit else repo.at(commits[repo.root]))
    # One path remains one path: with `shards`, the folder.
    return source.model_copy(update={"path": at[0] if len(at) == 1 else tuple(at)})


def _paths(name: str, source: Source) -> tuple[str, ...]:
    """The paths of a source: its own, else those of its description; none for a table or a dataset."""
    if source.table is not None or source.dataset is not None:
        return ()
    if source.path is not None:
        return source.patterns
    hub = getattr(source.shape(), "hub", None)
    if hub is not None:
        return (hub.root(source.revision),) if source.shards is not None else hub.urls(source.revision)
    if source.revision is not None:
        raise ConfigError(
            f"sources.{name}.revision={source.revision}: the description '{source.spec}' is not on the hub"
        )
    if source.shards is not None:
        return (posixpath.dirname(source.shards) or ".",)
    raise ConfigError(
        f"sources.{name}: give either `path` (files), `dataset` (a committed corpus) or `table` (a table of Spark's "
        f"catalog), since the description '{source.spec}' names no data set on the hub"
    )


def _commits(recipe: Recipe, moving: Mapping[str, list[Repo]]) -> dict[str, str]:
    """The commits of all revisions that may move."""
    if not moving:
        return recipe.revisions
    known = {**_kept(recipe.place), **recipe.revisions}
    found: dict[str, str] = {}
    for name, repos in moving.items():
        for repo in repos:
            if repo.root not in found:
                source = recipe.sources[name]
                found[repo.root] = known.get(repo.root) or _asked(name, source, repo, recipe.storage)
    unused = recipe.revisions.keys() - found.keys()
    if unused:
        raise ConfigError(f"revisions: no source reads {min(unused)}; the sources read {', '.join(sorted(found))}")
    return found


def _kept(output: Location) -> dict[str, str]:
    """The commits that an earlier run in the output found."""
    record = read_record(output / RECORD)
    try:
        return _REVISIONS.validate_python((record.recipe if record else {}).get("revisions", {}))
    except ValidationError as error:
        raise DataError(
            f"{output / RECORD} is damaged: its `revisions` are no commits of the hub; remove it, and the next run of "
            "the recipe writes it again"
        ) from error


def _asked(name: str, source: Source, repo: Repo, storage: Storage) -> str:
    options = {**storage.get(scheme_of(repo.root), {}), **source.options}
    try:
        return resolve(repo, options)
    except (ConfigError, DataError) as error:
        if source.path is not None:
            raise type(error)(f"sources.{name}.path: {error}") from error
        raise type(error)(
            f"sources.{name}.path is missing, and the files of '{source.spec}' cannot be found on the hub: {error}; or "
            f"give `path`, as in --set sources.{name}.path=FILES"
        ) from error
