"""What is left out and what is too little, counted by hand from the rows."""

from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pytest

from etl.errors import ConfigError
from tests.datasets import write_dataset
from tests.training.corpora import documents, write_corpus
from tests.training.data.streams import small_stream
from tests.training.teacher_tables import append_columns, rows_of, write_teacher
from training.data.reader import ReadConfig
from training.stages.schedule import ArmConfig, StageConfig
from training.stages.state import TrainState
from training.stages.stream import RunStreams
from training.stages.survey import (
    Survey,
    check_left_out,
    left_out_counts,
    left_out_lines,
    read_in,
    shortages,
    survey_stages,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("survey")
    write_corpus(found / "corpus")
    return found


def streams(folder, **changes):
    return RunStreams(small_stream(corpus=str(folder / "corpus"), **changes), ReadConfig(), 0, folder / "decisions")


def one_stage(tokens=100, **more):
    return [StageConfig.model_validate({"name": "s", "tokens": tokens, **more})]


def surveyed(folder, stages, **changes):
    return survey_stages(streams(folder, **changes), stages)


def lengths(folder):
    return [row["n_tokens"] for row in rows_of(folder / "corpus")]


def test_counts_shares_and_lengths_are_those_of_the_rows(folder):
    (arm,) = surveyed(folder, one_stage(), pack_tokens=20)
    sizes = lengths(folder)
    short = [size for size in sizes if size <= 20]
    found = arm.survey
    assert (found.documents, found.longest, found.too_long) == (120, max(sizes), 120 - len(short))
    assert found.left_out == {"longer than pack_tokens": 120 - len(short)}
    assert found.tokens == {"*": sum(short)}
    assert found.share_too_long == (120 - len(short)) / 120
    assert left_out_counts([arm]) == {"s": {"main": {"documents": 120, "longer than pack_tokens": 120 - len(short)}}}
    (line,) = left_out_lines([arm])
    assert line == (
        f"'s': {120 - len(short)} of 120 documents ({1 - len(short) / 120:.1%}) are left out: "
        f"{120 - len(short)} longer than pack_tokens"
    )


@pytest.mark.parametrize("shares", [None, {"B1/*": 0.5, "B3/*": 0.5}])
def test_ranks_together_find_what_one_finds(folder, shares):
    of_run = streams(folder, pack_tokens=20, shares=shares)
    parts = []
    for rank in range(3):
        survey_stages(of_run, one_stage(), ranks=(rank, 3), gather=lambda mine: parts.append(mine) or [mine])
    (whole,) = survey_stages(of_run, one_stage())
    assert Survey.merged([mine for (mine,) in parts]) == whole.survey
    assert sum(part.documents for (part,) in parts) == 120


def test_documents_without_scores_or_share_do_not_count_as_too_long(folder):
    scored = rows_of(folder / "corpus")[::3]
    write_teacher(folder / "scores", scored)
    data = {"teacher": str(folder / "scores"), "shares": {"B1/*": 1.0}, "on_exhausted": "redistribute"}
    (arm,) = surveyed(folder, one_stage(arms=[{"data": data}]), pack_tokens=20)
    of_share = [row for row in scored if row["id"] in {row["id"] for row in documents(90, 1).to_pylist()}]
    too_long = sum(row["n_tokens"] > 20 for row in of_share)
    assert arm.survey.left_out == {
        "not scored by the teacher": 80,
        "no share": 40 - len(of_share),
        "longer than pack_tokens": too_long,
    }
    assert arm.survey.share_too_long == too_long / len(of_share)


def test_a_pair_is_as_long_as_both_its_sides(tmp_path):
    table = documents(4, 5)
    sizes = [30, 10, 12, 11]  # Two pairs: 30 + 10 do not fit in 39, 12 + 11 do.
    ids = [list(range(size)) for size in sizes]
    spans = [[{"kind": "final", "turn": 0, "start": 1, "content_start": 1, "end": size}] for size in sizes]
    table = table.set_column(1, table.schema.field("input_ids"), pa.array(ids, pa.list_(pa.int32())))
    table = table.set_column(2, table.schema.field("n_tokens"), pa.array(sizes, pa.int32()))
    table = table.set_column(3, table.schema.field("spans"), pa.array(spans, table.schema.field("spans").type))
    table = append_columns(table, pair_id=["p", "p", "q", "q"], side=["chosen", "rejected"] * 2)
    write_dataset(str(tmp_path / "corpus"), "layout", "corpus", {"split=train/skill_bucket=B1/ctx_bucket=C1": table})
    (arm,) = surveyed(tmp_path, one_stage(), pack_tokens=39, lanes=1)
    assert (arm.survey.too_long, arm.survey.longest) == (2, 40)
    assert arm.survey.left_out == {"longer than pack_tokens": 2}
    with pytest.raises(ConfigError, match=r"2 of 4 documents \(50\.0%\).*\(a pair is as long as both its sides"):
        check_left_out([arm])


def test_too_many_long_documents_are_refused_with_both_remedies(folder):
    (arm,) = surveyed(folder, one_stage(), pack_tokens=20)
    share = sum(size > 20 for size in lengths(folder)) / 120
    assert share > 0.3
    with pytest.raises(ConfigError) as refused:
        check_left_out([arm])
    assert f"({share:.1%})" in str(refused.value)
    assert "raise data.pack_tokens to 40 for 99% of the documents or to 40 for the longest" in str(refused.value)
    assert "raise data.max_left_out to 0." in str(refused.value)
    check_left_out(surveyed(folder, one_stage(), pack_tokens=20, max_left_out=0.9))
    check_left_out(surveyed(folder, one_stage(), pack_tokens=40, max_left_out=0.0))


def test_a_quantile_is_a_size_in_which_so_many_fit():
    sizes = Counter({64: 90, 128: 9, 4096: 1})
    found = Survey(100, {}, {"*": 1}, 1, sizes, 4000, has_pairs=False)
    assert [found.size_of(quantile) for quantile in (0.5, 0.9, 0.91, 0.99, 1.0)] == [64, 64, 128, 128, 4000]


def test_what_arms_read_alike_is_one_line_and_reads_no_row_twice(folder):
    stages = [*one_stage(), StageConfig(name="t", tokens=5, arms=(ArmConfig(name="a"), ArmConfig(name="b", share=3)))]
    arms = surveyed(folder, stages)
    assert list(left_out_lines(arms)) == ["'s', 't' / 'a', 't' / 'b': 120 documents, none of them left out"]
    assert arms[0].survey is arms[2].survey
    assert [arm.needed_tokens for arm in arms] == [100, 1.25, 3.75]


def part_of_target(stage, tokens):
    """A rate that says where it was taken."""
    return tokens / stage.tokens


def test_a_target_beyond_the_documents_is_told_with_rates_and_what_to_do(folder):
    total = sum(lengths(folder))

    def told(tokens, **changes):
        return list(shortages(surveyed(folder, one_stage(tokens), **changes), part_of_target, {}))

    (line,) = told(4 * total)
    assert line == (
        f"stage 's' cannot reach its target: {total:,} tokens x 1 epochs are fewer than the {4 * total:,} it is to "
        f"read, so the stage ends after about {total:,} of {4 * total:,} tokens, at a rate of about 0.25, while its "
        f"schedule ends at 1; set tokens to {total:,}, data.epochs to 4, or data.on_exhausted to repeat"
    )
    assert told(4 * total, epochs=4) == told(total) == told(4 * total, on_exhausted="repeat") == []


def test_stages_that_continue_draw_on_one_supply_and_so_does_what_was_read_before(folder):
    total = sum(lengths(folder))

    def stages(**third):
        arms = [ArmConfig(name="x"), ArmConfig(name="y", data={"order": "continue"})]
        return [
            StageConfig(name="a", tokens=total // 2),
            StageConfig(name="b", tokens=total // 4, arms=tuple(arms)),
            StageConfig(name="c", tokens=total // 2, data=third),
        ]

    def told(stages, before=0, **changes):
        corpus = {str(folder / "corpus"): before}
        return [line.split(";")[0] for line in shortages(surveyed(folder, stages, **changes), part_of_target, corpus)]

    left = total - total // 2 - total // 4
    (line,) = told(stages())
    assert line == (
        f"stage 'c' cannot reach its target: {total:,} tokens x 1 epochs, of which the stages before read "
        f"{total // 2 + total // 4:,}, are fewer than the {total // 2:,} it is to read, so the stage ends after about "
        f"{left:,} of {total // 2:,} tokens, at a rate of about {left / (total // 2):.3g}, while its schedule ends at 1"
    )
    assert told(stages(order="fresh")) == told(stages(epochs=2)) == told(stages(on_exhausted="repeat")) == []
    assert told(stages(), epochs=2) == []
    assert [line.split()[1] for line in told(stages(), before=total)] == ["'a'", "'b'", "'c'"]
    ended = TrainState().end_of_stage("a", "target", 0.1, 5)
    streams_of_run = streams(folder)
    assert read_in(streams_of_run, stages()[:1], [replace(ended, tokens=70)]) == {str(folder / "corpus"): 70}
    assert read_in(streams(folder, order="fresh"), stages()[:1], [replace(ended, tokens=70)]) == {}


def test_of_shares_the_group_that_ends_first_ends_the_stage(folder):
    first = sum(documents(90, 1)["n_tokens"].to_pylist())
    second = sum(documents(30, 2)["n_tokens"].to_pylist())
    assert second < first
    (arm,) = surveyed(folder, one_stage(), shares={"B1/*": 1.0, "B3/*": 3.0})
    assert arm.tokens == second * 4 / 3
    (arm,) = surveyed(folder, one_stage(), shares={"B1/*": 1.0, "B3/*": 3.0}, on_exhausted="redistribute")
    assert arm.tokens == first + second
