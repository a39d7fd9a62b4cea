"""`njit`: numba compilation with a cache keyed by source code and CPU.

numba's own cache is keyed by the absolute path of the module, so it misses in every zip that a cluster unpacks
elsewhere. It fails if HOME cannot be written, and does not notice a change in a function that a kernel calls. Two
processes that compile one kernel for two signatures, or two CPUs, may leave the code of one under the name of the
other. Here the folder is cache_dir()/numba/<CPU>/<digest>. The CPU is its name and a hash of its features, so that
machines of several kinds can share a cache folder; the digest covers numba's version, the module and what it imports
for its kernels. A lock is held while an entry is written.

Compiling all kernels takes a minute of CPU time (`stillhouse warm` does it), loading them about 0.1 s per process.
"""

import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import numba
import numpy as np
from filelock import FileLock
from numba.core import caching
from numba.core.registry import cpu_target
from numba.extending import is_jitted

from etl.artefacts import LOCK_TIMEOUT_S, cache_dir

F = TypeVar("F", bound=Callable[..., Any])

_OURS = ("etl.", "training.")


def _source(module: str) -> str:
    """The source of a module, which may be in a zip."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    loader: Any = spec.loader
    return cast(str, loader.get_source(module))


@functools.cache
def digest(module: str) -> str:
    """SHA-256 of everything that the kernels of a module are compiled from.

    That is its source, and the names that it had imported when its first kernel was decorated: kernels of our other
    modules, and constants, which numba compiles in as they are.
    """
    parts = [numba.__version__, _source(module), *_imported(module)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _imported(module: str) -> Iterator[str]:
    """For each global that a kernel can compile in: its name, and a text that changes with its value."""
    for name, value in sorted(vars(sys.modules[module]).items()):
        if name.startswith("__"):
            continue
        if is_jitted(value):
            owner = value.py_func.__module__
            if owner != module and owner.startswith(_OURS):
                yield f"{name} {digest(owner)}"
        elif isinstance(value, np.ndarray):
            yield f"{name} {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
        elif _is_constant(value):
            yield f"{name} {value!r}"
        elif isinstance(value, type) and issubclass(value, tuple):
            yield f"{name} {getattr(value, '_fields', ())}"


def _is_constant(value: object) -> bool:
    """Whether numba can compile a value in, and its `repr` is the same in every process."""
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    return isinstance(value, int | float | str | bytes | np.generic)


@functools.cache
def cpu() -> str:
    """The kind of CPU that numba compiles for here, as a folder's name; CPUs with one name may differ in features."""
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    return f"{name or 'generic'}-{hashlib.sha256(f'{triple} {features}'.encode()).hexdigest()[:8]}"


class _Locator(caching._CacheLocator):
    """Location of the code of one kernel."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._digest = digest(function.__module__)
        self._line = function.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return os.fspath(cache_dir() / "numba" / cpu() / self._digest[:16])

    def get_source_stamp(self) -> str:
        return self._digest

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> "_Locator":
        return cls(py_func)


class _Impl(caching.CompileResultCacheImpl):
    _locator_classes: Any = [_Locator]


class _KernelCache(caching.FunctionCache):
    """numba's cache, in our folder, one writer at a time: a write reads an index, then writes it and the code."""

    _impl_class = _Impl

    def save_overload(self, sig: Any, data: Any) -> None:
        self._impl.locator.ensure_cache_path()
        with FileLock(f"{self.cache_path}/.lock", timeout=LOCK_TIMEOUT_S):
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]  # numba has no types


def njit(function: F) -> F:
    """Compile to machine code on first call, without the GIL; the code is cached."""
    kernel: Any = numba.njit(nogil=True)(function)
    kernel._cache = _KernelCache(function)  # type: ignore[no-untyped-call]  # numba has no types
    return cast(F, kernel)
