"""A run that is killed anywhere and run again ends as an undisturbed one does."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from tests.services.process import wait_until
from tests.training import forked, kills
from tests.training.disturbed_runs import STEP_TOKENS, arguments, checked_steps, ledger, settings
from tests.training.faulty import FACTORY, FAULT
from tests.training.toy_runs import deterministic, records
from training.record.watchdog import HANG_EXIT_CODE

PROJECT = Path(__file__).resolve().parents[2]
DEADLINE_S = 120.0


def tokens_of(steps):
    return f"stages.0.tokens={steps * STEP_TOKENS}"


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    """The output of an undisturbed run of one process, by its length in steps."""
    done = {}

    def run(steps):
        if steps not in done:
            done[steps] = tmp_path_factory.mktemp("undisturbed")
            assert kills.train_until(arguments(settings(corpus, done[steps], tokens_of(steps)))) == 0
        return done[steps]

    return run


def final_states(output):
    """Of the newest checkpoint: the model's weights, and master weights and moments by place."""
    folder = max((output / "checkpoints").glob("step-*"))
    model = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    (path,) = folder.glob("*optim_states.pt")
    found = torch.load(path, weights_only=False)["optimizer_state_dict"]
    return model | dict(_tensors(found, ""))


def _tensors(value, name):
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(item, f"{name}/{key}")


# --- SIGKILL of one process ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_a_run_that_is_killed_at_random_moments_equals_an_undisturbed_one_bit_for_bit(
    corpus, undisturbed, tmp_path, num_kills
):
    seed = int(os.environ.get("KILLS_SEED") or random.SystemRandom().randrange(2**32))
    moments = kills.moments(seed, num_kills)
    sys.stdout.write(f"KILLS_SEED={seed} gives {moments}\n")  # shown when it fails
    steps = (num_kills + 1) * kills.STEPS
    run = arguments(settings(corpus, tmp_path, tokens_of(steps)))
    saved = []
    for moment in moments:
        # Nothing is loaded before there is a checkpoint.
        moment = replace(moment, site="step") if moment.site == "load" and not saved else moment
        assert kills.train_until(run, moment) == -signal.SIGKILL, moment
        before, saved = saved, checked_steps(tmp_path)
        assert saved[-1:] >= before[-1:], moment
    assert kills.train_until(run) == 0
    expected = undisturbed(steps)
    assert deterministic(records(tmp_path)) == deterministic(records(expected))
    assert ledger(tmp_path) == ledger(expected)
    ours, theirs = final_states(tmp_path), final_states(expected)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 10
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- signals to one process ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_at_work_and_says_where(corpus, tmp_path, number, code):
    run = arguments(settings(corpus, tmp_path / "run", tokens_of(8), "checkpoint.every_steps=1000"))
    said = tmp_path / "said"
    assert kills.train_until(run, kills.Moment("step", 3, signals=(number,)), said) == code
    assert checked_steps(tmp_path / "run") == [3]
    (folder,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    last = said.read_text().splitlines()[-1]
    assert last.startswith("3 steps, ")
    assert f"stopped before its end; run it again to resume; checkpoint: {folder}, " in last


def test_a_second_ctrl_c_ends_the_run_at_once(corpus, tmp_path):
    run = arguments(settings(corpus, tmp_path, tokens_of(8), "checkpoint.every_steps=1000"))
    moment = kills.Moment("step", 3, signals=(signal.SIGINT, signal.SIGINT))
    assert kills.train_until(run, moment) == -signal.SIGINT
    assert checked_steps(tmp_path) == []


def test_ctrl_c_before_the_first_step_has_nothing_to_save(corpus, tmp_path):
    run = arguments(settings(corpus, tmp_path / "run", tokens_of(8)))
    for site in ("build", "evaluate"):
        said = tmp_path / f"said-{site}"
        assert kills.train_until(run, kills.Moment(site, 1, signals=(signal.SIGINT,)), said) == 130
        assert said.read_text().splitlines()[-1] == "stopped by Ctrl-C; run the same command again to resume"
        assert checked_steps(tmp_path / "run") == []


# --- two supervised processes --------------------------------------------------------------------------------------


class Supervised:
    """`stillhouse train --nproc 2` in a process, and what its ranks are."""

    def __init__(self, values, **environment):
        words = [word for value in values for word in ("--set", value)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", "train", "demo", "--nproc", "2", "--grace", "60", "--json", *words],
            cwd=PROJECT,
            env={**os.environ, **forked.ENVIRONMENT, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = []

    def until_step(self, step):
        """Reads on to the record of a step; the ranks, by their number."""
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("{") and json.loads(line).get("step") == step:
                children = psutil.Process(self.process.pid).children()
                return {int(child.environ()["RANK"]): child for child in children}
        raise AssertionError("it has ended:\n" + "".join(self.said))

    def end(self):
        """Its exit code; all it has said is in `said`."""
        self.said += self.process.communicate(timeout=DEADLINE_S)[0].splitlines(keepends=True)
        return self.process.returncode


@pytest.fixture
def start():
    """Starts supervised runs and ends them after the test."""
    started = []

    def begin(values, **environment):
        started.append(Supervised(values, **environment))
        return started[-1]

    yield begin
    for run in started:
        with contextlib.suppress(ProcessLookupError):
            run.process.kill()
        run.process.communicate()


def wait_for_the_end_of(ranks):
    """Raises TimeoutError where one is left; one may need a moment to be reaped."""

    def is_left(rank):
        return rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE

    wait_until(lambda: not any(map(is_left, ranks.values())), "the end of all ranks", 10)


def test_sigterm_saves_where_it_stands_and_the_next_start_ends_like_an_undisturbed_run(
    corpus, undisturbed, tmp_path, start
):
    values = settings(corpus, tmp_path, tokens_of(32), "checkpoint.every_steps=1000")
    stopped = start(values)
    ranks = stopped.until_step(3)
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.end() == 0, "".join(stopped.said)
    ours = ("{", "stillhouse: SIGTERM", "'warm_start': ")
    assert all(line.startswith(ours) for line in stopped.said), "".join(stopped.said)
    wait_for_the_end_of(ranks)
    last = records(tmp_path)[-1]["step"]
    assert 3 <= last < 32
    assert checked_steps(tmp_path) == [last]
    for code, said in forked.run_ranks(kills.main, arguments(values), world_size=2, folder=tmp_path):
        assert code == 0, said
    ours, theirs = records(tmp_path), records(undisturbed(32))
    assert len(ours) == len(theirs)
    for key in ("step", "tokens", "loss", "held_out", "total_tokens"):
        expected = [record[key] for record in theirs if key in record]
        assert [record[key] for record in ours if key in record] == pytest.approx(expected, abs=1e-5)
    assert ledger(tmp_path) == ledger(undisturbed(32))


@pytest.mark.slow
def test_a_killed_rank_takes_the_other_down_and_the_last_checkpoint_is_whole(corpus, tmp_path, start):
    run = start(settings(corpus, tmp_path, tokens_of(200)))
    # The checkpoint of step 2 is complete before that of step 4 is begun.
    ranks = run.until_step(5)
    ranks[1].kill()
    assert run.end() == 128 + signal.SIGKILL
    assert "rank 1 ended with SIGKILL; the others were stopped" in "".join(run.said)
    wait_for_the_end_of(ranks)
    assert checked_steps(tmp_path)[-1] >= 2


@pytest.mark.slow
def test_a_hanging_rank_is_named_with_its_step_and_all_ranks_end(corpus, tmp_path, start):
    packs_a_step = 2
    fault = f"hang,1,{5 * packs_a_step + 1}"
    more = [FACTORY, "watchdog.hang_timeout_s=15"]
    run = start(settings(corpus, tmp_path, tokens_of(200), *more), **{FAULT: fault})
    ranks = run.until_step(5)
    assert run.end() == HANG_EXIT_CODE
    told = [line for line in run.said if "watchdog:" in line]
    assert any("no progress for 15 s; rank 1 at step 6 in phase forward_backward" in line for line in told), told
    wait_for_the_end_of(ranks)
    assert checked_steps(tmp_path)[-1] >= 2
