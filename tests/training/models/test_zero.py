"""Students under DeepSpeed on two processes: a shared head, adapters and checkpointed layers at ZeRO stage 3."""

import json

import pytest

from tests.training.forked import run_ranks


@pytest.mark.slow  # two processes, eight engines
def test_stage_3_trains_every_kind_of_student_as_stage_0_does(tmp_path):
    from tests.training.models import zero_students  # loads DeepSpeed

    for code, said in run_ranks(zero_students.main, world_size=2, folder=tmp_path):
        assert code == 0, said
        for name, by_stage in json.loads(said.splitlines()[-1]).items():
            assert by_stage["3"] == pytest.approx(by_stage["0"], rel=1e-4), name
            assert by_stage["0"][-1] < by_stage["0"][0] - 0.1, name
