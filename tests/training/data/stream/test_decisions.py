import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from etl.errors import ConfigError, DataError
from etl.storage.location import Location
from tests.training.data.streams import part, stream
from training.data.stream.decisions import INITIAL, DecisionLog, Policy, Record
from training.data.stream.plan import initial_value

PARTS = [part(f"split=train/skill_bucket={skill}/ctx_bucket=C1/part-0-x", [20, 20]) for skill in ("B1", "B2")]


def opened(folder, config=None, seed=0):
    return DecisionLog.open(Location.of(folder), initial_value(config or stream(), seed, PARTS))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_run_writes_exactly_one_record_a_segment_when_it_starts_it(tmp_path):
    log = opened(tmp_path)
    for segment in range(3):
        assert log.start(segment) == Policy()
        assert names(tmp_path) == [f"{number:06d}.json" for number in range(segment + 1)]
    assert json.loads((tmp_path / "000001.json").read_text())["kind"] == "keep"


def test_a_record_holds_from_its_segment_on(tmp_path):
    log = opened(tmp_path, stream(shares={"*": 1.0}))
    DecisionLog.existing(Location.of(tmp_path)).append(2, "phase", {"shares": {"B1/*": 1, "B2/*": 3}})
    DecisionLog.existing(Location.of(tmp_path)).append(4, "weights", {"weights": "uniform"})
    DecisionLog.existing(Location.of(tmp_path)).append(5, "stage", {"stage": "anneal", "modes": {"low": 1.0}})
    found = [log.start(segment) for segment in range(6)]
    assert [policy.shares for policy in found] == [{"*": 1.0}] * 2 + [{"B1/*": 1, "B2/*": 3}] * 4
    assert [policy.weights for policy in found] == ["sampling_weight"] * 4 + ["uniform"] * 2
    assert (found[4].stage, found[5].stage, found[5].modes) == (None, "anneal", {"low": 1.0})
    assert log.policy_at(3) == found[3]


def test_a_run_that_goes_on_finds_the_same_log(tmp_path):
    log = opened(tmp_path)
    DecisionLog.existing(Location.of(tmp_path)).append(1, "weights", {"weights": "uniform"})
    log.start(3)
    again = opened(tmp_path)
    again.start(3)
    assert [again.digest_at(n) for n in range(4)] == [log.digest_at(n) for n in range(4)]
    assert [again.policy_at(n) for n in range(4)] == [log.policy_at(n) for n in range(4)]
    assert len({log.digest_at(n) for n in range(4)}) == 4


def test_digests_cover_all_records_before(tmp_path):
    one, other = opened(tmp_path / "one"), opened(tmp_path / "other")
    one.append(1, "weights", {"weights": "uniform"})
    one.start(2)
    other.start(2)
    assert one.digest_at(0) == other.digest_at(0)
    assert one.digest_at(1) != other.digest_at(1)
    assert one.digest_at(2) != other.digest_at(2)
    assert opened(tmp_path / "third", seed=1).digest_at(0) != one.digest_at(0)


def test_a_segment_that_has_started_is_refused_naming_the_first_free_one(tmp_path):
    log = opened(tmp_path)
    log.start(2)
    operator = DecisionLog.existing(Location.of(tmp_path))
    operator.append(3, "weights", {"weights": "uniform"})
    for segment in (1, 2):
        with pytest.raises(ConfigError, match=f"segment {segment} of .* has its record .*next free segment is 4"):
            operator.append(segment, "weights", {"weights": "uniform"})
    with pytest.raises(ConfigError, match="segment 0 cannot be decided"):
        operator.append(0, "keep", {})
    assert log.start(3).weights == "uniform"


def test_deciding_the_same_again_changes_nothing(tmp_path):
    opened(tmp_path)
    operator = DecisionLog.existing(Location.of(tmp_path))
    assert operator.append(3, "modes", {"modes": {"low": 1}}) == operator.append(3, "modes", {"modes": {"low": 1}})
    with pytest.raises(ConfigError, match="has its record"):
        operator.append(3, "modes", {"modes": {"low": 2}})


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("phases", {}, "no such kind; did you mean 'phase'"),
        ("phase", {}, "it sets nothing; it must set shares"),
        ("phase", {"share": {"*": 1}}, "it sets share; it must set shares"),
        ("keep", {"shares": {"*": 1}}, "it must set nothing"),
        ("weights", {"weights": "equal"}, "weights"),
        ("phase", {"shares": {"B7/*": 1, "*": 1}}, r"'B7/\*' of data.shares matches no remaining cell.*B1/C1, B2/C1"),
        ("phase", {"shares": {"*": 0}}, "at least one of them positive"),
        ("modes", {"modes": {"low": -1}}, "shares are 0 or positive"),
    ],
)
def test_a_decision_that_cannot_be_followed_is_refused_before_it_is_written(tmp_path, kind, value, message):
    log = opened(tmp_path)
    with pytest.raises(ConfigError, match=message):
        log.append(1, kind, value)
    assert names(tmp_path) == ["000000.json"]


def test_a_group_with_fewer_documents_than_lanes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="40 documents there for 41 lanes"):
        opened(tmp_path, stream(lanes=41, shares={"B1/*": 1, "B2/*": 1}))
    opened(tmp_path, stream(lanes=41, shares={"B1/*": 1, "B2/*": 1}, on_exhausted="redistribute"))


def test_another_stream_in_the_same_folder_is_refused_naming_what_differs(tmp_path):
    opened(tmp_path)
    opened(tmp_path)
    with pytest.raises(ConfigError, match="seed was 0 and is 8"):
        opened(tmp_path, seed=8)
    with pytest.raises(ConfigError, match="epochs was 1 and is 3"):
        opened(tmp_path, stream(epochs=3))


def test_there_is_nothing_to_append_to_before_the_run(tmp_path):
    with pytest.raises(ConfigError, match="no decision log; start the run first"):
        DecisionLog.existing(Location.of(tmp_path))


def test_a_record_that_was_changed_by_hand_is_refused(tmp_path):
    log = opened(tmp_path)
    log.append(1, "weights", {"weights": "uniform"})
    path = tmp_path / "000001.json"
    path.write_text(path.read_text().replace('"uniform"', '"sampling_weight"'))
    with pytest.raises(DataError, match=r"segment 1 .* was changed"):
        log.start(1)


def test_a_preview_takes_what_was_decided_and_writes_nothing(tmp_path):
    log = opened(tmp_path)
    log.append(2, "weights", {"weights": "uniform"})
    preview = DecisionLog.preview(Location.of(tmp_path), initial_value(stream(), 0, PARTS))
    assert [preview.start(n).weights for n in range(3)] == ["sampling_weight", "sampling_weight", "uniform"]
    assert names(tmp_path) == ["000000.json", "000002.json"]
    log.start(2)
    assert preview.digest_at(2) == log.digest_at(2)
    alone = DecisionLog.preview(None, initial_value(stream(), 0, PARTS))
    assert alone.start(2) == Policy()


def test_of_an_operator_and_many_ranks_at_one_segment_one_wins_and_all_agree(tmp_path):
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        opened(folder)
        gate = threading.Barrier(5)

        def rank(folder=folder, gate=gate):
            log = opened(folder)
            gate.wait()
            log.start(1)
            return log.digest_at(1), log.policy_at(1).weights

        def operator(folder=folder, gate=gate):
            log = DecisionLog.existing(Location.of(folder))
            gate.wait()
            try:
                log.append(1, "weights", {"weights": "uniform"})
            except ConfigError:
                return "sampling_weight"
            return "uniform"

        with ThreadPoolExecutor(5) as pool:
            ranks = [pool.submit(rank) for _ in range(4)]
            won = pool.submit(operator).result()
        found = {future.result() for future in ranks}
        assert len(found) == 1
        assert {weights for _, weights in found} == {won}
        assert names(folder) == ["000000.json", "000001.json"]


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b"{}", b'{"segment": 0, "kind": "initial", "value": {}, "digest": NaN}', b"[" * 10_000]
)
def test_a_record_that_is_none_is_told(tmp_path, data):
    place = Location.of(tmp_path)
    (place / "000000.json").create(data)
    with pytest.raises(DataError, match=r"the record of segment 0 in .* is damaged: .*; restore the old one"):
        DecisionLog.existing(place)


def test_a_first_record_that_begins_no_stream_is_told(tmp_path):
    place = Location.of(tmp_path)
    (place / "000000.json").create(Record.of(0, INITIAL, {"cells": {"a": -1}, "recipe": {}}).to_json())
    with pytest.raises(DataError, match="cannot start a stream"):
        DecisionLog.existing(place)
