"""`njit`: numba compilation whose machine code is cached under the digest of the source that made it.

numba's own cache is keyed by the absolute path of the module, so it misses in every zip that a cluster unpacks
elsewhere and fails where HOME cannot be written. Here the folder is cache_dir()/numba/<digest>, the digest covers the
module and those few whose kernels the kernels of others may call. The first compilation of all kernels costs some
seconds a machine, a cached load about 0.1 s a process.
"""

import functools
import hashlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import caching

from etl.artefacts import cache_dir

F = TypeVar("F", bound=Callable[..., Any])


_CALLABLE = (
    "etl.hashing", "etl.text", "etl.dedup.minhash", "etl.dedup.canaries", "etl.filters.ngram_words",
    "etl.filters.ngram_scan",
)  # fmt: skip
"""Modules with kernels that kernels of other modules call."""


def _source(module: str) -> str:
    """The text of a module, which need not be loaded yet."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    loader: Any = spec.loader
    return cast(str, loader.get_source(module))


@functools.cache
def _digest(module: str) -> str:
    text = "\0".join([numba.__version__, *map(_source, (module, *_CALLABLE))])
    return hashlib.sha256(text.encode()).hexdigest()


class DigestLocator(caching._CacheLocator):
    """Places the cache of our modules by the digest of their source; leaves other packages to numba."""

    def __init__(self, py_func: Callable[..., Any]) -> None:
        self._digest = _digest(py_func.__module__)
        self._line = py_func.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return os.fspath(cache_dir() / "numba" / self._digest[:16])

    def get_source_stamp(self) -> str:
        return self._digest

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> "DigestLocator | None":
        if not py_func.__module__.startswith(("etl.", "training.")):
            return None
        locator = cls(py_func)
        Path(locator.get_cache_path()).mkdir(parents=True, exist_ok=True)
        return locator


_locators: list[Any] = caching.CacheImpl._locator_classes
_locators.insert(0, DigestLocator)


def njit(function: F) -> F:
    """Compile to machine code on first call, without the GIL, cached by source digest."""
    return cast(F, numba.njit(cache=True, nogil=True)(function))
