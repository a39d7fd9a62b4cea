"""`spark-submit --py-files stillhouse.zip`: the zip is all of the project that driver and workers use."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from etl.engines.java import find_java
from etl.storage.location import Location
from etl.storage.verify import verify
from tests.etl.stages.toys import stage

PROJECT = Path(__file__).resolve().parents[2]
WHERE = """
import sys
import conf, etl, jobs
import pyarrow as pa
from pyspark.sql import SparkSession

def on_a_worker(batches):
    import etl
    for _ in batches:
        yield pa.record_batch({"file": [etl.__file__]})

spark = SparkSession.builder.getOrCreate()
rows = spark.range(0, 2, 1, 2).mapInArrow(on_a_worker, "file string").collect()
for name in (etl.__file__, conf.__file__, jobs.__file__, *(row["file"] for row in rows)):
    print("FILE", name)
"""


def submit(archive, folder, *arguments):
    """Run spark-submit in an empty folder, for a user without a home."""
    binary = Path(sys.executable).parent / "spark-submit"
    empty = folder / "empty"
    empty.mkdir()
    environment = {
        **os.environ,
        "HOME": "/nonexistent",
        "JAVA_HOME": str(find_java().home),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_DIRS": str(folder / "spark"),
    }
    command = [str(binary), "--master", "local[2]", "--py-files", str(archive), *arguments]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(empty.iterdir()) == []
    return done.stdout


@pytest.mark.slow
def test_zip_holds_the_packages_and_their_data(archive):
    names = set(zipfile.ZipFile(archive).namelist())
    sources = {
        str(path.relative_to(PROJECT))
        for folder in ("etl", "jobs", "training", "conf")
        for path in (PROJECT / folder).rglob("*")
        if path.suffix in (".py", ".yaml", ".json", ".jsonl", ".txt") and "__pycache__" not in path.parts
    }
    assert sources <= names
    assert not [name for name in names if name.startswith("tests/")]


@pytest.mark.slow
@pytest.mark.spark
def test_driver_and_workers_import_from_the_zip(archive, tmp_path):
    (tmp_path / "where.py").write_text(WHERE)
    out = submit(archive, tmp_path, str(tmp_path / "where.py"))
    imported = [line.split()[1] for line in out.splitlines() if line.startswith("FILE ")]
    assert len(imported) == 5
    assert all("stillhouse.zip/" in path for path in imported), imported


@pytest.mark.slow
@pytest.mark.spark
def test_the_demo_recipe(archive, tmp_path):
    out = submit(
        archive, tmp_path, str(PROJECT / "jobs" / "run_recipe.py"), "--conf", "conf/recipes/demo.yaml",
        "--set", f"output={tmp_path / 'out'}", "--set", "score.steps.1.fraction=0", "--set", "run.split_bytes=16000000",
    )  # fmt: skip
    assert "corpus" in out
    assert list(verify(Location.of(tmp_path / "out"))) == []
    manifest = stage(tmp_path / "out", "corpus").manifest
    assert manifest.rows_out > 1000
    assert {source: steps["ingest"]["in"] for source, steps in manifest.accounting.items()}.keys() == {
        "synth", "stdlib", "licences", "dialogue",
    }  # fmt: skip


SETTINGS = """
from etl.engines.spark import SparkEngine

engine = SparkEngine()
conf = engine.session.sparkContext.getConf()
for key in ("spark.master", "spark.app.name", "spark.driver.memory", "spark.ui.enabled", "spark.sql.session.timeZone"):
    print("SET", key, conf.get(key))
engine.close()
"""


@pytest.mark.slow
@pytest.mark.spark
def test_what_the_user_set_wins_over_every_default(archive, tmp_path):
    (tmp_path / "settings.py").write_text(SETTINGS)
    mine = {"spark.ui.enabled": "true", "spark.ui.port": "0", "spark.driver.host": "127.0.0.1"}
    flags = [item for key, value in mine.items() for item in ("--conf", f"{key}={value}")]
    out = submit(
        archive, tmp_path, "--master", "local[3]", "--name", "mine", "--driver-memory", "900m", *flags,
        str(tmp_path / "settings.py"),
    )  # fmt: skip
    found = dict(line.split()[1:] for line in out.splitlines() if line.startswith("SET "))
    assert found == {
        "spark.master": "local[3]",
        "spark.app.name": "mine",
        "spark.driver.memory": "900m",
        "spark.ui.enabled": "true",
        "spark.sql.session.timeZone": "UTC",
    }
