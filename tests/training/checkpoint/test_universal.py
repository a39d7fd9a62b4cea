"""Carrying a checkpoint over: every number of ranks, ZeRO stage and precision to every other one."""

import json

import pytest
import torch
from deepspeed.utils.tensor_fragment import fragment_address
from safetensors.torch import load_file

from etl.errors import ConfigError, DataError
from tests.training.checkpoint_ranks import launch
from training.checkpoint.universal import ShardLayout, check_optimizer, convert

KINDS = [(0, False), (1, False), (2, False), (3, False), (1, True), (2, True), (3, True)]
"""ZeRO stage, bf16."""


def name(world, kind):
    return f"{world}-{kind[0]}{'-bf16' if kind[1] else ''}"


def check_same(saved, loaded, is_same_precision):
    """Masters, moments, frozen parameters and buffers to the bit; hyperparameters of each group; the next losses."""
    # What is frozen has no float32 master: an engine in bf16 rounds it.
    names = [name for name in saved["state"] if is_same_precision or name != "frozen"]
    assert {name: loaded["state"][name] for name in names} == {name: saved["state"][name] for name in names}
    assert loaded["decays"] == [0.1, 0.0]
    assert loaded["payload"] == saved["payload"]
    if is_same_precision:
        assert loaded["loss"][0] == pytest.approx(saved["loss"][0], abs=1e-6)
        # After a step: the moments and their bias correction are in it. Reductions sum in another order.
        assert loaded["loss"][1] == pytest.approx(saved["loss"][1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_layout_goes_on_in_every_other(tmp_path):
    saved = {}
    for world in (1, 2):
        plan = [
            {"do": "save", "stage": stage, "bf16": bf16, "steps": 3, "scratch": str(tmp_path / "scratch"),
             "root": str(tmp_path / name(world, (stage, bf16)))}
            for stage, bf16 in KINDS
        ]  # fmt: skip
        saved |= {(world, kind): result for kind, result in zip(KINDS, launch(plan, world, tmp_path), strict=True)}
    cases = [(origin, kind) for origin in saved for kind in KINDS]
    for world in (1, 2):
        plan = [
            {"do": "load", "stage": stage, "bf16": bf16, "root": str(tmp_path / name(*origin)),
             "scratch": str(tmp_path / f"scratch-{name(*origin)}")}
            for origin, (stage, bf16) in cases
        ]  # fmt: skip
        for (origin, kind), loaded in zip(cases, launch(plan, world, tmp_path), strict=True):
            check_same(saved[origin], loaded, origin[1][1] == kind[1])


@pytest.mark.slow
def test_stage_3_in_small_pieces(tmp_path):
    """More sub-groups than parameter groups, and each rank with only its own files."""
    small = {"sub_group_size": 60}
    common = {"bf16": True, "root": str(tmp_path / "root"), "scratch": str(tmp_path / "scratch-{rank}")}
    plan = [
        {"do": "save", "stage": 3, "zero": small, "steps": 3, **common},
        {"do": "load", "stage": 3, "zero": small, **common},
        {"do": "load", "stage": 3, **common},
        {"do": "load", "stage": 2, **common},
    ]
    saved, *loaded = launch(plan, 2, tmp_path)
    for result in loaded:
        check_same(saved, result, is_same_precision=True)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "Muon"])
def test_another_optimizer_is_refused_by_name(optimizer):
    with pytest.raises(ConfigError, match=f"the optimizer is {optimizer}: only AdamW resumes with another number"):
        check_optimizer(optimizer)


LAYOUT = ShardLayout(world=2, zero_stage=1, bf16=False, groups="")


def write_stage_1(folder, **more_state):
    """What two ranks write of one parameter of five elements, of which the first rank owns three."""
    model = {"param_shapes": [{"w": torch.Size([5])}], "shared_params": {}, "module": {"w": None}, "global_steps": 7}
    torch.save(model, folder / "mp_rank_00_model_states.pt")
    for rank, owned in enumerate(([0.0, 1.0, 2.0], [3.0, 4.0])):
        padded = torch.tensor([*owned, 99.0][:3])
        state = {"step": torch.tensor(7.0), "exp_avg": padded + 10, "exp_avg_sq": padded + 20, **more_state}
        saved = {
            "base_optimizer_state": {"state": {0: state}},
            "single_partition_of_fp32_groups": [padded[: len(owned)].clone()],
            "param_slice_mappings": [{"w": fragment_address(start=0, numel=len(owned))}],
        }
        torch.save({"optimizer_state_dict": saved}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


def test_fragments_of_the_ranks_are_put_together_without_padding(tmp_path):
    write_stage_1(tmp_path)
    convert(tmp_path, LAYOUT, tmp_path / "universal")
    index = json.loads((tmp_path / "universal" / "index.json").read_text())
    assert index["trained"] == {"w": {"file": "00000.safetensors", "shape": [5], "step": 7.0}}
    whole = load_file(tmp_path / "universal" / "00000.safetensors")
    assert whole["fp32"].tolist() == [0, 1, 2, 3, 4]
    assert whole["exp_avg"].tolist() == [10, 11, 12, 13, 14]
    assert whole["exp_avg_sq"].tolist() == [20, 21, 22, 23, 24]


def test_an_optimizer_that_keeps_more_than_adamw_is_refused(tmp_path):
    write_stage_1(tmp_path, max_exp_avg_sq=torch.zeros(3))
    with pytest.raises(ConfigError, match="kept exp_avg, exp_avg_sq, max_exp_avg_sq, step"):
        convert(tmp_path, LAYOUT, tmp_path / "universal")


@pytest.mark.parametrize("claimed", [{"world": 1}, {"zero_stage": 3}, {"zero_stage": 0}])
def test_files_that_are_not_what_the_layout_says_are_told(tmp_path, claimed):
    write_stage_1(tmp_path)
    with pytest.raises(DataError, match="does not contain what ZeRO stage"):
        convert(tmp_path, LAYOUT.model_copy(update=claimed), tmp_path / "universal")
    assert not (tmp_path / "universal" / "index.json").exists()
