import pytest

from etl.errors import ConfigError, DataError
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from training.record import run_record


def test_a_record_keeps_the_configuration_and_the_manifests_without_their_files(corpus, tmp_path):
    run_record.write(str(tmp_path), {"seed": 3}, {"a:B": {"version": 1}}, [str(corpus)], [])
    found = run_record.read(Location.of(tmp_path))
    manifest = Dataset.open(str(corpus)).manifest
    assert (found["config"], found["teacher_tables"], list(found["corpora"])) == ({"seed": 3}, {}, [str(corpus)])
    kept = found["corpora"][str(corpus)]
    assert kept["content_digest"] == manifest.content_digest
    assert kept["num_tokens"] == manifest.num_tokens
    assert "parts" not in kept
    assert found["code"] == {"a:B": {"version": 1}}


def test_a_later_start_writes_it_again(corpus, tmp_path):
    for seed in (1, 2):
        run_record.write(str(tmp_path), {"seed": seed}, {}, [str(corpus)], [])
    assert run_record.read(Location.of(tmp_path))["config"] == {"seed": 2}


def test_a_table_that_is_not_committed_is_missed_and_nothing_is_written(corpus, tmp_path):
    with pytest.raises(DataError, match="is not a committed dataset"):
        run_record.write(str(tmp_path), {}, {}, [str(corpus)], [str(tmp_path / "none")])
    assert not (tmp_path / run_record.NAME).exists()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="give the `output` of a training run"):
        run_record.read(Location.of(tmp_path))
