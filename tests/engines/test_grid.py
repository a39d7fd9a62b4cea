"""Every stage, every engine, same rows: digests with 1, 2 and 7 splits and shuffled input, against the oracle."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.grid import DATASETS, NUM_SPLITS, run_and_digest, twice_and_digest, write_inputs
from tests.engines.inprocess import InProcessEngine
from tests.services.spark import spark_environment, standalone_cluster


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory):
    """What the oracle makes of one split."""
    return run_and_digest(inputs, 1, str(tmp_path_factory.mktemp("expected")), InProcessEngine())


def check(inputs, tmp_path, engine, expected):
    for num_splits in NUM_SPLITS:
        assert run_and_digest(inputs, num_splits, str(tmp_path / str(num_splits)), engine) == expected


def test_every_dataset_is_in_the_grid(expected):
    assert set(expected) == set(DATASETS)
    # All but the two that are empty here differ from one another.
    assert len(set(expected.values())) >= len(DATASETS) - 2


def test_in_process(inputs, tmp_path, expected):
    check(inputs, tmp_path, InProcessEngine(batch_rows=3, seed=1), expected)


def test_local(inputs, tmp_path, expected):
    from etl.engines.local import LocalEngine

    check(inputs, tmp_path, LocalEngine(), expected)


def test_local_pool(inputs, tmp_path, expected):
    from etl.engines.local import LocalEngine

    with contextlib.closing(LocalEngine(processes=2)) as engine:
        check(inputs, tmp_path, engine, expected)


def test_spark_local(inputs, tmp_path, expected, spark):
    from etl.engines.spark import SparkEngine

    check(inputs, tmp_path, SparkEngine(session=spark), expected)


def test_beam_direct(inputs, tmp_path, expected):
    from etl.engines.beam import BeamEngine

    check(inputs, tmp_path, BeamEngine([], report=lambda line: None), expected)


def test_components_in_rounds_on_beam(inputs, tmp_path, expected):
    from etl.engines.beam import BeamEngine

    engine = BeamEngine([], report=lambda line: None)
    assert run_and_digest(inputs, 2, str(tmp_path), engine, max_component_edges=0) == expected
    assert (tmp_path / "candidate_components").is_dir(), "one task has found the components"


@pytest.fixture(scope="module")
def expected_twice(tmp_path_factory):
    return twice_and_digest(tmp_path_factory.mktemp("expected_twice"), InProcessEngine())


def test_kinds_that_stand_twice_locally(tmp_path, expected_twice):
    from etl.engines.local import LocalEngine

    with contextlib.closing(LocalEngine(processes=2)) as engine:
        assert twice_and_digest(tmp_path, engine) == expected_twice
    assert len(expected_twice) > 20


def test_kinds_that_stand_twice_on_spark(tmp_path, expected_twice, spark):
    from etl.engines.spark import SparkEngine

    assert twice_and_digest(tmp_path, SparkEngine(session=spark)) == expected_twice


def test_kinds_that_stand_twice_on_beam(tmp_path, expected_twice):
    from etl.engines.beam import BeamEngine

    assert twice_and_digest(tmp_path, BeamEngine([], report=lambda line: None)) == expected_twice


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_beam_portable(inputs, tmp_path, expected, portable_flags):
    from etl.engines.beam import BeamEngine

    check(inputs, tmp_path, BeamEngine(portable_flags, report=lambda line: None), expected)


def on_spark(inputs, folder, environment, master):
    """The grid in a Spark application of its own."""
    command = [sys.executable, "-m", "tests.engines.grid", str(inputs), "--output", str(folder / "out")]
    submit = f"--master {master} --driver-memory 1g --conf spark.ui.enabled=false pyspark-shell"
    environment = {**environment, "PYSPARK_SUBMIT_ARGS": submit, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.spark
def test_spark_local_cluster(inputs, tmp_path, expected):
    found = on_spark(inputs, tmp_path, spark_environment(tmp_path), "local-cluster[2,1,1024]")
    assert found == {str(num_splits): expected for num_splits in NUM_SPLITS}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.spark
def test_spark_standalone(inputs, tmp_path, expected):
    with standalone_cluster(tmp_path) as cluster:
        found = on_spark(inputs, tmp_path, cluster.environment, cluster.url)
    assert found == {str(num_splits): expected for num_splits in NUM_SPLITS}
