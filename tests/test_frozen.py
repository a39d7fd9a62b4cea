"""Rows, schemas, fingerprints and defaults are those of the stored tables (tests/frozen), or a version was raised."""

import copy

import pytest

from etl import conf
from tests.frozen import tables


@pytest.fixture(scope="module")
def made():
    """Every table as the code makes it now; about 10 CPU-seconds."""
    return tables.rows_and_defaults()


def check(name, made):
    found = tables.compare(name, tables.stored(name), made[name])
    listed = "\n".join(f"  {difference}" for difference in found)
    assert not found, f"not as in tests/frozen/{name}.json:\n{listed}"


def test_every_dataset_of_every_recipe_is_as_stored(made):
    check("runs", made)


def test_every_default_is_as_stored(made):
    check("defaults", made)


def test_every_shipped_recipe_is_frozen(made):
    assert set(conf.shipped("recipes")) <= set(made["runs"])


# --- what a difference asks for: on copies of the stored tables, with one thing changed ------------------------------


def changed(name, path, value):
    """Differences from a table in which one value, at a path of keys, is another."""
    table = tables.stored(name)
    new = copy.deepcopy(table)
    place = new
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return tables.compare(name, table, new)


@pytest.mark.parametrize(("field", "value"), [("content_digest", "0" * 32), ("schema", ["id: string"]), ("rows", 1)])
def test_other_rows_under_an_old_fingerprint_are_forbidden(field, value):
    found = changed("runs", ("demo", "exact", field), value)
    assert all(difference.forbidden for difference in found)
    assert str(found[0]).startswith(f"recipe demo, dataset exact: {field}")
    assert "raise the version" in str(found[0])


def test_other_rows_under_another_fingerprint_are_recorded():
    stored = tables.stored("runs")["demo"]["exact"]
    other = {**stored, "fingerprint": "f", "rows": 1, "made_from": copy.deepcopy(stored["made_from"])}
    other["made_from"]["mark"]["step"] = "other"
    found = changed("runs", ("demo", "exact"), other)
    assert not any(difference.forbidden for difference in found)
    assert any("made_from.mark.step: 'exact' -> 'other'" in str(difference) for difference in found)


def test_a_default_changes_only_with_its_version():
    (found,) = changed("defaults", ("AnswerStep", "defaults", "failure_phrases"), [])
    assert found.forbidden
    assert "AnswerStep: default of failure_phrases" in str(found)
    stored = tables.stored("defaults")["AnswerStep"]
    other = {**stored, "version": 2, "defaults": {**stored["defaults"], "failure_phrases": []}}
    found = changed("defaults", ("AnswerStep",), other)
    assert len(found) == 2
    assert not any(difference.forbidden for difference in found)


def test_a_located_default_is_recorded_under_the_same_version():
    (found,) = changed("defaults", ("Layout", "defaults", "target_bytes"), 1)
    assert not found.forbidden


def test_a_new_field_is_recorded_under_the_same_version():
    (found,) = changed("defaults", ("AnswerStep", "defaults", "new"), 1)
    assert not found.forbidden
