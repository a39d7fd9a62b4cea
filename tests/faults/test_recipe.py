"""A whole recipe that is killed again and again, at operations on storage: about 100 kills a chain, or all 690."""

import pytest

from etl.engines.local import LocalEngine
from etl.storage.location import Location
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.toys import stage
from tests.faults.chain import at_random, everywhere, killed_again_and_again
from tests.faults.recipes import STAGES, Reference, recipe_at, run_here, write_sources


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, sources):
    output = Location.of(tmp_path_factory.mktemp("undisturbed") / "out")
    run_here(recipe_at(output, sources))
    return Reference.of(output)


def older_run(output, tmp_path) -> Location:
    """The output, with a finished run of another input in it."""
    run_here(recipe_at(output, write_sources(tmp_path / "older", more_rows=5)))
    return output


def survive(output, sources, undisturbed, next_run, new_engine=InProcessEngine) -> set[str]:
    """The stages that were killed."""
    kills = killed_again_and_again(recipe_at(output, sources), output, next_run, new_engine)
    assert kills.half_written == []
    finding = undisturbed.check(output)
    assert finding.stages == set(), finding
    return set(kills.by_stage)


def test_the_measure_finds_what_is_lost_and_doubled(local_folders, sources, undisturbed):
    output = local_folders()
    run_here(recipe_at(output, sources))
    assert undisturbed.check(output).stages == set()
    doubled, lost = (stage(output.url, name).manifest.parts[0].path for name in ("filter", "score"))
    (output / f"filter/copy-{doubled}").create((output / f"filter/{doubled}").read())
    (output / f"score/{lost}").remove()
    finding = undisturbed.check(output)
    assert finding.doubled["filter"] > 0
    assert finding.lost["score"] > 0
    assert finding.differences == {
        "filter": [f"orphan filter/copy-{doubled}"],
        "score": [f"missing score/{lost}"],
    }


def test_killed_again_and_again_on_a_local_disk(tmp_path, local_folders, sources, undisturbed):
    survive(older_run(local_folders(), tmp_path), sources, undisturbed, at_random(1))


def test_killed_again_and_again_on_the_local_engine(local_folders, sources, undisturbed):
    survive(local_folders(), sources, undisturbed, at_random(2), LocalEngine)


@pytest.mark.slow
def test_killed_at_every_operation_on_a_local_disk(local_folders, sources, undisturbed):
    assert survive(local_folders(), sources, undisturbed, everywhere()) == set(STAGES)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_again_and_again_on_s3(tmp_path, s3_folders, sources, undisturbed, seed):
    survive(older_run(s3_folders(), tmp_path), sources, undisturbed, at_random(seed))
