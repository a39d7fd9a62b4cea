"""DataflowRunner against a fake service and a GCS emulator: graph, staging, templates, jobs that run what was staged.

Real Dataflow is never reached: its own checks of a job, its containers and its autoscaling are not tested here.
"""

import json

import pytest
from apache_beam.portability.api import beam_runner_api_pb2

from jobs.run_beam import main
from tests.acme import LONG_ANSWERS, importable, write_package, zipped
from tests.etl.stages.toys import make_recipe, mixed_rows, run, stage, write_parquet
from tests.services.dataflow import StagedWorker, dataflow_service
from tests.services.gcs import gcs_server
from tests.wheel import build_wheel

pytestmark = pytest.mark.slow
STAGES = ["dedup", "tokenize", "layout"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def gcs(tmp_path_factory):
    with gcs_server(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture
def store(gcs):
    import gcsfs

    return gcsfs.GCSFileSystem(**gcs.options, skip_instance_cache=True)


@pytest.fixture
def place(gcs, store, request, monkeypatch):
    """A folder of the emulator's for one test."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.endpoint_url)
    return f"{gcs.bucket('stillhouse-tests')}/{request.node.name}"


@pytest.fixture
def rows(tmp_path, place, store):
    """The input, at a local path and in the emulator."""
    local = write_parquet(tmp_path / "a.parquet", mixed_rows(60))
    store.put_file(str(local), f"{place}/a.parquet")
    return local


@pytest.fixture
def flags(place, wheel):
    """What docs/how-to/dataflow.md says, but for the flags that keep Beam from Google's servers."""
    return [
        "--runner=DataflowRunner", "--project=my-project", "--region=europe-west1", f"--temp_location={place}/tmp",
        f"--extra_package={wheel}", "--job_name=toy", "--no_auth", "--sdk_location=container",
    ]  # fmt: skip


def arguments(gcs, place, recipe, flags):
    """Command line of a recipe below `place`."""
    overrides = [
        f"output={place}/out", f"sources.a.path={place}/a.parquet", f"storage.gs={json.dumps(gcs.options)}",
    ]  # fmt: skip
    return ["--conf", str(recipe), *(item for pair in overrides for item in ("--set", pair)), "--", *flags]


@pytest.fixture
def recipe(tmp_path):
    tree = make_recipe("out", {"a": "a.parquet"}, stages=STAGES, dedup={"exact": {}, "near": None})
    path = tmp_path / "toy.yaml"
    path.write_text(json.dumps(tree.model_dump(mode="json", exclude_unset=True)))
    return path


def steps_of(store, pipeline_url):
    proto = beam_runner_api_pb2.Pipeline.FromString(store.cat_file(pipeline_url))
    return proto, {item.unique_name for item in proto.components.transforms.values()}


def test_a_recipe_is_some_jobs_in_turn_that_run_the_staged_package(tmp_path, gcs, store, place, rows, flags, recipe):
    worker = StagedWorker(gcs, tmp_path / "worker")
    with dataflow_service(worker) as service:
        assert main(arguments(gcs, place, recipe, [*flags, f"--dataflow_endpoint={service.endpoint}"])) == 0, (
            worker.logs
        )
    names = [job["name"] for job in service.jobs]
    assert names[0] == "toy-ingest"
    assert "toy-exact-hits" in names
    assert names[-1] == "toy-corpus"
    assert len(set(names)) == len(names)

    run(make_recipe(tmp_path / "out", {"a": rows}, stages=STAGES, dedup={"exact": {}, "near": None}))
    expected = stage(tmp_path / "out", "corpus").manifest
    made = json.loads(store.cat_file(f"{place}/out/corpus/_manifest.json"))
    assert made["content_digest"] == expected.content_digest
    assert made["rows_out"] > 30

    job = next(job for job in service.jobs if job["name"] == "toy-exact-hits")
    options = job["environment"]["sdkPipelineOptions"]["options"]
    proto, steps = steps_of(store, options["pipelineUrl"])
    assert {f"exact_hits/{name}" for name in ("splits", "emit", "buckets", "rows", "group", "reduce")} <= steps
    (environment,) = proto.components.environments.values()
    assert any("stillhouse-" in str(item.type_payload) for item in environment.dependencies)
    for staged in worker.staged:
        assert {"pipeline.pb", "extra_packages.txt"} <= set(staged)
        assert [name for name in staged if name.startswith("stillhouse-") and name.endswith(".whl")]
        assert not [name for name in staged if "main_session" in name]
    assert not store.exists(f"{place}/out/_lock.json")


def test_a_package_of_a_users_own_is_staged_beside_ours(tmp_path, capsys, gcs, store, place, rows, flags):
    folder = write_package(tmp_path / "outside")
    filters = {"stages": ["filter"], "filter": {"steps": [{"kind": LONG_ANSWERS, "max_chars": 250}]}}
    extra = f"--extra_package={zipped(folder, tmp_path / 'acme_filters-1.0-py3-none-any.whl')}"
    worker = StagedWorker(gcs, tmp_path / "worker")
    with importable(folder, "acme_filters"), dataflow_service(worker) as service:
        path = tmp_path / "mine.yaml"
        tree = make_recipe("out", {"a": "a.parquet"}, **filters)
        path.write_text(json.dumps(tree.model_dump(mode="json", exclude_unset=True)))
        call = arguments(gcs, place, path, [*flags, extra, f"--dataflow_endpoint={service.endpoint}"])
        assert main(call) == 0, worker.logs
        run(make_recipe(tmp_path / "out", {"a": rows}, **filters))
    made = json.loads(store.cat_file(f"{place}/out/filter/_manifest.json"))
    expected = stage(tmp_path / "out", "filter").manifest
    assert made["content_digest"] == expected.content_digest
    assert made["accounting"]["a"]["LongAnswers"]["too_long"] > 5
    assert all("acme_filters-1.0-py3-none-any.whl" in staged for staged in worker.staged)


def test_an_error_of_a_worker_is_what_the_launcher_says(tmp_path, capsys, gcs, store, place, rows, flags, recipe):
    data = bytearray(rows.read_bytes())
    data[20:600] = bytes(580)
    store.pipe_file(f"{place}/a.parquet", bytes(data))
    worker = StagedWorker(gcs, tmp_path / "worker")
    with dataflow_service(worker) as service:
        code = main(arguments(gcs, place, recipe, [*flags, f"--dataflow_endpoint={service.endpoint}"]))
    assert code == 2, worker.logs
    assert "SourceError: " in capsys.readouterr().err
    assert [job["name"] for job in service.jobs] == ["toy-ingest"]
    assert not store.glob(f"{place}/out/_failure-*")


def test_templates_come_one_stage_at_a_time(tmp_path, capsys, gcs, store, place, rows, flags, recipe):
    worker = StagedWorker(gcs, tmp_path / "worker")
    call = arguments(gcs, place, recipe, [*flags, f"--template_location={place}/templates"])
    assert main(call) == 0
    assert f"ingest: the template is {place}/templates/ingest;" in capsys.readouterr().out
    template = json.loads(store.cat_file(f"{place}/templates/ingest"))
    url = template["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"]
    assert "ingest/task" in steps_of(store, url)[1]
    assert main(call) == 0
    assert len(store.ls(f"{place}/templates")) == 1

    assert worker.run(url) == "JOB_STATE_DONE", worker.logs
    capsys.readouterr()
    assert main(call) == 0
    assert f"exact_hits: the template is {place}/templates/exact-hits;" in capsys.readouterr().out
    assert store.exists(f"{place}/out/ingest/_manifest.json")


def test_a_dry_run_submits_and_stages_nothing(capsys, gcs, store, place, rows, flags, recipe):
    assert main(arguments(gcs, place, recipe, [*flags, "--dry_run=True"])) == 0
    assert "ingest: the job was built but, because of --dry_run, not submitted" in capsys.readouterr().out
    assert not store.exists(f"{place}/tmp")


@pytest.mark.parametrize(
    ("key", "value"), [("output", "/tmp/out"), ("sources.a.path", "/tmp/a.parquet"), ("sources.a.path", "sample:synth")]
)
def test_places_on_this_machines_disk_are_refused(capsys, gcs, place, flags, recipe, key, value):
    call = arguments(gcs, place, recipe, [])
    assert main([*call[:-1], "--set", f"{key}={value}", "--", *flags]) == 2
    assert f"ConfigError: {key}={value}" in capsys.readouterr().err
