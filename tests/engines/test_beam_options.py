"""Flags of Beam: a wrong one is an error that names it."""

import copy

import pytest
from apache_beam.options.pipeline_options import DirectOptions, GoogleCloudOptions

from etl.engines.beam_options import is_one_worker, pipeline_options, runs_here
from etl.errors import ConfigError


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--runer=FnApiRunner", r"no flag --runer=FnApiRunner; did you mean --runner\?"),
        ("--num_workers=many", "--num_workers: invalid int value: 'many'"),
        ("--direct_running_mode=fast", "invalid choice: 'fast'"),
        ("--runner=NoRunner", "Unexpected pipeline runner: NoRunner"),
        ("stray", "no flag stray"),
        ("--runner=DataflowRunner", "Missing required option: project"),
    ],
)
def test_a_wrong_flag_is_a_config_error(flag, told):
    with pytest.raises(ConfigError, match=told):
        pipeline_options([flag])


@pytest.mark.parametrize(
    ("flags", "here"),
    [
        ([], True),
        (["--runner=DirectRunner"], True),
        (["--runner=PortableRunner", "--job_endpoint=127.0.0.1:1", "--environment_type=LOOPBACK"], True),
        (["--runner=PortableRunner", "--job_endpoint=127.0.0.1:1", "--environment_type=DOCKER"], False),
    ],
)
def test_whether_workers_are_on_this_machine(flags, here):
    assert runs_here(pipeline_options(flags)) == here


def test_main_is_not_pickled_unless_asked_for():
    assert pipeline_options([]).get_all_options()["save_main_session"] is False
    assert pipeline_options(["--save_main_session"]).get_all_options()["save_main_session"] is True


@pytest.mark.parametrize(
    ("flags", "one"),
    [
        ([], True),
        (["--direct_num_workers=2"], False),
        (["--direct_num_workers=0"], False),
        (["--runner=PortableRunner", "--job_endpoint=127.0.0.1:1", "--environment_type=LOOPBACK"], False),
    ],
)
def test_whether_one_worker_does_all(flags, one):
    assert is_one_worker(pipeline_options(flags)) == one


def test_a_view_is_made_once_and_a_copy_has_its_own():
    options = pipeline_options(["--job_name=ours"])
    view = options.view_as(GoogleCloudOptions)
    assert options.view_as(GoogleCloudOptions) is view
    copied = copy.deepcopy(options)
    copied.view_as(GoogleCloudOptions).job_name = "theirs"
    copied.view_as(DirectOptions).direct_num_workers = 3
    assert (view.job_name, options.view_as(DirectOptions).direct_num_workers) == ("ours", 1)
    assert copied.get_all_options()["job_name"] == "theirs"
