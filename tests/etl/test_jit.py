"""Where compiled code is kept: by the source that made it, wherever that lies, and by all that is compiled into it."""

import ast
import json
import os
import subprocess
import sys

import pytest

from etl import jit
from etl.hashing import xxh64_u64
from tests.environment import PROJECT

KERNEL = """
from etl.jit import njit

@njit
def times(x):
    return {factor} * x
"""
PROGRAM = """
import sys
import etl

etl.__path__.append(sys.argv[1])
from etl.toy_kernel import times

print(times(21), sum(times.stats.cache_hits.values()), sum(times.stats.cache_misses.values()))
"""


def result_hits_misses(folder, factor, cache):
    """In a process of its own, of a kernel in a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "toy_kernel.py").write_text(KERNEL.format(factor=factor))
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(folder)]
    environment = {**os.environ, "STILLHOUSE_CACHE": str(cache)}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


def test_code_is_compiled_once_for_equal_sources_wherever_they_lie(tmp_path):
    cache = tmp_path / "cache"
    assert result_hits_misses(tmp_path / "one", 2, cache) == (42, 0, 1)
    assert result_hits_misses(tmp_path / "other", 2, cache) == (42, 1, 0)
    assert len(list((cache / "numba").iterdir())) == 1
    assert result_hits_misses(tmp_path / "one", 3, cache) == (63, 0, 1)
    assert len(list((cache / "numba").iterdir())) == 2


def test_a_kernel_of_ours_lies_in_the_cache_folder_under_its_digest(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path))
    function = xxh64_u64.py_func
    locator = jit.DigestLocator.from_function(function, "etl/hashing.py")
    stamp = locator.get_source_stamp()
    assert locator.get_cache_path() == str(tmp_path / "numba" / stamp[:16])
    assert [path.name for path in (tmp_path / "numba").iterdir()] == [stamp[:16]]
    assert locator.get_disambiguator() == str(function.__code__.co_firstlineno)


def test_other_packages_are_left_to_numba():
    assert jit.DigestLocator.from_function(json.dumps, json.__file__) is None


def kernels_of(path):
    """The kernels of a module by name, and what it imports: name to (module, name there)."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    kernels = {
        node.name: node
        for node in nodes
        if isinstance(node, ast.FunctionDef) and "njit" in [ast.unparse(each) for each in node.decorator_list]
    }
    imported = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return kernels, imported


def modules_called_by_kernels_of_others():
    """Modules with a kernel whose name a kernel of another module uses."""
    paths = [path for folder in ("etl", "training") for path in (PROJECT / folder).rglob("*.py")]
    modules = {".".join(path.relative_to(PROJECT).with_suffix("").parts): kernels_of(path) for path in paths}
    found = set()
    for kernels, imported in modules.values():
        for kernel in kernels.values():
            names = {node.id for node in ast.walk(kernel) if isinstance(node, ast.Name)}
            for module, name in (imported[used] for used in names & imported.keys()):
                if module in modules and name in modules[module][0]:
                    found.add(module)
    return sorted(found)


@pytest.mark.parametrize("module", modules_called_by_kernels_of_others())
def test_the_digest_covers_every_module_whose_kernels_are_compiled_into_those_of_another(module):
    """numba does not see a change of what a cached kernel calls."""
    assert module in jit._CALLABLE
