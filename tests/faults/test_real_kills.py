"""kill -9, twelve times, at processes of a whole recipe on Spark with the output on local disk and on S3; and at those
of runs on Beam and on the local engine.

Seeds vary from run to run and are printed; STILLHOUSE_FAULT_SEED repeats one. A chain on Spark took 2 and 4
minutes on two cores that were busy with other work.
"""

import random

import pytest

from etl.storage.location import Location
from tests.faults.conftest import Folders
from tests.faults.real import (
    SPARK_VICTIMS,
    Command,
    Victim,
    beam_command,
    kill_one_by_one,
    local_command,
    spark_command,
)
from tests.faults.recipes import Reference, recipe_at, run_here, write_conf

CUTTING_BYTES = 1 << 20
"""One split a file and one bucket: what is tested are processes, and tasks only cost time."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, sources):
    output = Location.of(tmp_path_factory.mktemp("undisturbed") / "out")
    run_here(recipe_at(output, sources, CUTTING_BYTES))
    return Reference.of(output)


@pytest.fixture
def survive(tmp_path, sources, undisturbed, seed, say):
    """Kill, let the runs come to their end, and compare every output with the undisturbed one."""

    def run(folders: Folders, command: Command, victims: list[Victim]) -> None:
        outputs = {}

        def commands():
            while True:
                output = folders()
                outputs[output.url] = output
                recipe = recipe_at(output, sources, CUTTING_BYTES)
                yield output.url, command(write_conf(recipe, tmp_path / f"conf-{len(outputs)}.yaml"))

        done = kill_one_by_one(commands(), victims, seed, tmp_path)
        say(f"{done.runs} runs, killed {', '.join(f'{victim} at dataset {at}' for victim, at in done.kills)}")
        assert [victim for victim, _ in done.kills] == victims
        for name in done.outputs:
            finding = undisturbed.check(outputs[name])
            assert finding.stages == set(), finding

    return run


@pytest.mark.slow
@pytest.mark.spark
@pytest.mark.timeout(900)
@pytest.mark.parametrize("store", ["local", "s3"])
def test_processes_of_a_spark_run_are_killed(request, survive, seed, store):
    victims = [*SPARK_VICTIMS] * 2
    random.Random(f"{store} {seed}").shuffle(victims)
    survive(request.getfixturevalue(f"{store}_folders"), spark_command, victims)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_driver_of_a_beam_run_is_killed(local_folders, survive):
    survive(local_folders, beam_command, [Victim.DRIVER] * 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_of_a_local_run_are_killed(local_folders, survive, seed):
    victims = [Victim.DRIVER, Victim.LOCAL] * 3
    random.Random(seed).shuffle(victims)
    survive(local_folders, local_command, victims)
