"""Converts a checkpoint to another number of ranks, ZeRO stage or precision: parameters by name, bit for bit.

    universal/<tag>/00000.safetensors …   one trained parameter each: fp32, exp_avg, exp_avg_sq, flat float32
    universal/<tag>/index.json            what is where, the steps of AdamW; written last

`convert` reads the files of all ranks (memory-mapped, one parameter in memory at a time) and writes 12 bytes a
trained parameter; frozen parameters and buffers are copied as they are. `load` reads only the fragments that a rank
owns. DeepSpeed's own `ds_to_universal` is not used: its loader needs another DeepSpeed JSON, knows no ZeRO stage 0,
leaves frozen parameters and buffers at their initial values, fails where a rank holds only padding of a group, and at
ZeRO stage 3 gives every parameter group the hyperparameters of the first (docs/concepts/checkpoints.md).
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from etl.config import Config
from etl.errors import ConfigError, DataError
from etl.storage.location import Location
from training.checkpoint import tensors_only

MASTER = "fp32"
MOMENTS = ("exp_avg", "exp_avg_sq")
STATES = (MASTER, *MOMENTS)
INDEX = "index.json"
NAMES_KEY = "stillhouse_parameter_names"
"""Key of the client state: names of the trained parameters by group, which DeepSpeed does not write at ZeRO stage 0."""
_OPTIMIZER = "AdamW"


class ShardLayout(Config):
    """How an engine's states are sharded over its files.

    Checkpoints of equal layouts exchange files as they are; others go through `convert`.
    """

    world: int = Field(ge=1, le=1 << 20)
    zero_stage: int = Field(ge=0, le=3)
    bf16: bool
    groups: str
    """Digest of names and shapes in the order of the flat groups."""

    @classmethod
    def of(cls, engine: Any) -> "ShardLayout":
        """The layout of a DeepSpeed engine."""
        zero_stage = int(engine.zero_optimization_stage())
        return cls(
            world=int(engine.dp_world_size),
            zero_stage=zero_stage,
            bf16=bool(engine.bfloat16_enabled()),
            groups=hashlib.sha256(json.dumps(_flat_groups(engine, zero_stage)).encode()).hexdigest()[:16],
        )


def _flat_groups(engine: Any, zero_stage: int) -> list[list[Any]]:
    if zero_stage == 0:
        return [[[name, list(parameter.shape)] for name, parameter in group] for group in _named_groups(engine)]
    return [[[name, list(shape)] for name, shape in group.items()] for group in engine._get_zero_param_shapes()]


def _named_groups(engine: Any) -> list[list[tuple[str, torch.nn.Parameter]]]:
    """The optimizer's groups at ZeRO stage 0."""
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    return [
        [(names[parameter], parameter) for parameter in group["params"]] for group in _optimizer(engine).param_groups
    ]


def parameter_names(engine: Any) -> list[list[str]]:
    """Names of the trained parameters by group, in the order of the engine's files."""
    return [[name for name, _ in group] for group in _flat_groups(engine, int(engine.zero_optimization_stage()))]


def optimizer_name(engine: Any) -> str:
    """Class of the optimizer that DeepSpeed steps; "AdamW" for torch's and its subclasses."""
    optimizer = _optimizer(engine)
    return _OPTIMIZER if isinstance(optimizer, torch.optim.AdamW) else type(optimizer).__name__


def check_optimizer(name: str) -> None:
    """Refuse an optimizer whose state cannot be carried over exactly.

    Raises:
        ConfigError: the optimizer is not AdamW.
    """
    if name != _OPTIMIZER:
        raise ConfigError(
            f"the optimizer is {name}: only {_OPTIMIZER} resumes with another number of ranks, ZeRO stage or "
            "precision; run with those of the checkpoint"
        )


def _optimizer(engine: Any) -> torch.optim.Optimizer:
    """Torch's optimizer below DeepSpeed's."""
    found = engine.optimizer
    while not isinstance(found, torch.optim.Optimizer):
        found = found.optimizer
    return found


@dataclass(frozen=True)
class _Trained:
    """One trained parameter with everything that AdamW keeps for it."""

    name: str
    shape: list[int]
    step: float
    states: dict[str, torch.Tensor]
    """For each of STATES: float32 [numel]."""


def convert(files: Path, layout: ShardLayout, target: Path) -> None:
    """Convert DeepSpeed's files of all ranks to parameters by name.

    Args:
        files: folder of the files.
        layout: layout of the engine that wrote them.
        target: folder to make; it is complete when its index.json is there.

    Raises:
        ConfigError: the optimizer's state is not that of AdamW.
        DataError: a file is damaged or does not hold what its layout says.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    trained = {0: _of_zero_stage_0, 3: _of_zero_stage_3}.get(layout.zero_stage, _of_zero_stage_1_and_2)
    index: dict[str, Any] = {"trained": {}, "other": {}}
    try:
        for number, parameter in enumerate(trained(files, layout)):
            name = f"{number:05d}.safetensors"
            save_file(parameter.states, target / name)
            index["trained"][parameter.name] = {"file": name, "shape": parameter.shape, "step": parameter.step}
        for number, (name, tensor) in enumerate(_not_trained(files, layout, set(index["trained"]))):
            index["other"][name] = f"other-{number:05d}.safetensors"
            save_file({"value": tensor.contiguous()}, target / index["other"][name])
        index["global_steps"] = _read(_model_file(files, layout, 0))["global_steps"]
    except (FileNotFoundError, KeyError, IndexError, RuntimeError) as error:
        raise DataError(
            f"{files} does not contain what ZeRO stage {layout.zero_stage} of {layout.world} ranks writes "
            f"({type(error).__name__}: {error}); remove its manifest.json to resume from an earlier checkpoint"
        ) from error
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot convert into {target}: {error}; free some space or set checkpoint.scratch") from error
    Location.of(target / INDEX).replace(json.dumps(index).encode())


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = tensors_only.load(path, map_location="cpu", mmap=True)
    return found


def _model_file(files: Path, layout: ShardLayout, rank: int) -> Path:
    name = "mp_rank_00_model_states.pt"
    return files / (f"zero_pp_rank_{rank}_{name}" if layout.zero_stage == 3 else name)


def _optimizer_states(files: Path, layout: ShardLayout) -> list[dict[str, Any]]:
    """The optimizer states of each rank."""
    prefix = "bf16_" if layout.bf16 else ""
    names = [f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(layout.world)]
    return [_read(files / name)["optimizer_state_dict"] for name in names]


def _moments(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    if set(state) != {"step", *MOMENTS}:
        raise ConfigError(
            f"the optimizer kept {', '.join(sorted(map(str, state)))}, AdamW keeps step, exp_avg and exp_avg_sq; "
            "only that resumes with another number of ranks, ZeRO stage or precision"
        )
    return {moment: state[moment] for moment in MOMENTS}


def _of_zero_stage_0(files: Path, layout: ShardLayout) -> Iterator[_Trained]:
    found = _read(_model_file(files, layout, 0))
    saved = found["optimizer"]
    for names, group in zip(found[NAMES_KEY], saved["param_groups"], strict=True):
        for name, number in zip(names, group["params"], strict=True):
            master = found["module"][name]
            # torch keeps nothing for a parameter that has never had a gradient.
            nothing = {"step": 0.0, **{moment: torch.zeros_like(master) for moment in MOMENTS}}
            state = saved["state"].get(number, nothing)
            states = {MASTER: master, **_moments(state)}
            flat = {key: tensor.float().flatten().clone() for key, tensor in states.items()}
            yield _Trained(name, list(master.shape), float(state["step"]), flat)


def _of_zero_stage_1_and_2(files: Path, layout: ShardLayout) -> Iterator[_Trained]:
    ranks = _optimizer_states(files, layout)
    for group, shapes in enumerate(_read(_model_file(files, layout, 0))["param_shapes"]):
        saved = [rank["base_optimizer_state"]["state"][group] for rank in ranks]
        flat = [
            {MASTER: rank["single_partition_of_fp32_groups"][group], **_moments(state)}
            for rank, state in zip(ranks, saved, strict=True)
        ]
        addresses = [rank["param_slice_mappings"][group] for rank in ranks]
        for name, shape in shapes.items():
            places = [(own, address[name]) for own, address in zip(flat, addresses, strict=True) if name in address]
            states = {
                key: torch.cat([own[key].narrow(0, place.start, place.numel) for own, place in places])
                for key in STATES
            }
            yield _checked(name, shape, saved, states)


def _of_zero_stage_3(files: Path, layout: ShardLayout) -> Iterator[_Trained]:
    ranks = _optimizer_states(files, layout)
    for group, shapes in enumerate(_read(_model_file(files, layout, 0))["param_shapes"]):
        saved = [rank["optimizer_state_dict"]["state"][group] for rank in ranks]
        flat = [
            {MASTER: rank["fp32_flat_groups"][group], **_moments(state)}
            for rank, state in zip(ranks, saved, strict=True)
        ]
        offset = 0
        for name, shape in shapes.items():
            numel = math.prod(shape)
            part = -(-numel // layout.world)
            states = {key: torch.cat([own[key].narrow(0, offset, part) for own in flat])[:numel] for key in STATES}
            offset += part
            yield _checked(name, shape, saved, {key: tensor.clone() for key, tensor in states.items()})


def _checked(name: str, shape: torch.Size, saved: list[dict[str, Any]], states: dict[str, torch.Tensor]) -> _Trained:
    steps = {float(state["step"]) for state in saved}
    numels = {tensor.numel() for tensor in states.values()}
    if len(steps) != 1 or numels != {math.prod(shape)}:
        raise RuntimeError(f"{name} of shape {list(shape)} has {numels} elements at steps {steps}")
    return _Trained(name, list(shape), steps.pop(), {key: tensor.float() for key, tensor in states.items()})


def _not_trained(files: Path, layout: ShardLayout, trained: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Frozen parameters and buffers."""
    first = _read(_model_file(files, layout, 0))
    if layout.zero_stage != 3:
        known = trained | set(first["shared_params"] or ())
        yield from ((name, tensor) for name, tensor in first["module"].items() if name not in known)
        return
    yield from ((name, first["module"][name]) for name in first["buffer_names"])
    fragments = [_read(_model_file(files, layout, rank))["frozen_param_fragments"] for rank in range(layout.world)]
    for name, shape in (first["frozen_param_shapes"] or {}).items():
        whole = torch.cat([rank[name].flatten() for rank in fragments])[: math.prod(shape)]
        yield name, whole.reshape(shape).clone()


class _Folder:
    """The folder that `convert` has written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        index = json.loads((folder / INDEX).read_text())
        self.trained: dict[str, dict[str, Any]] = index["trained"]
        self.other: dict[str, str] = index["other"]
        self.global_steps: int = index["global_steps"]

    def fragment(self, name: str, key: str, start: int, numel: int) -> torch.Tensor:
        """One of STATES: float32 [numel]."""
        with safe_open(self._folder / self.trained[name]["file"], framework="pt") as file:
            found: torch.Tensor = file.get_slice(key)[start : start + numel]
            return found

    def value(self, name: str) -> torch.Tensor:
        """A frozen parameter or buffer."""
        with safe_open(self._folder / self.other[name], framework="pt") as file:
            found: torch.Tensor = file.get_tensor("value")
            return found

    def step(self, names: list[str]) -> torch.Tensor:
        """The step that a group shares."""
        return torch.tensor(max((self.trained[name]["step"] for name in names), default=0.0))


@torch.no_grad()
def load(engine: Any, folder: Path) -> None:
    """Load master weights, moments and the rest of a converted checkpoint into a DeepSpeed engine. Every rank calls it.

    Raises:
        ConfigError: the optimizer is not AdamW, or the checkpoint has other parameters than the engine.
    """
    check_optimizer(optimizer_name(engine))
    saved = _Folder(folder)
    _check_parameters(engine, saved)
    _load_not_trained(engine, saved)
    zero_stage = int(engine.zero_optimization_stage())
    {0: _into_zero_stage_0, 3: _into_zero_stage_3}.get(zero_stage, _into_zero_stage_1_and_2)(engine, saved)
    engine.global_steps = saved.global_steps


def _check_parameters(engine: Any, saved: _Folder) -> None:
    groups = _flat_groups(engine, int(engine.zero_optimization_stage()))
    here = {name: list(shape) for group in groups for name, shape in group}
    there = {name: entry["shape"] for name, entry in saved.trained.items()}
    for name in sorted({*here, *there}):
        if here.get(name) != there.get(name):
            raise ConfigError(
                f"the checkpoint has {_told(name, there)}, this run {_told(name, here)} to train; "
                "give this run another `output`"
            )


def _told(name: str, shapes: dict[str, list[int]]) -> str:
    return f"{name} of shape {shapes[name]}" if name in shapes else f"no {name}"


def _load_not_trained(engine: Any, saved: _Folder) -> None:
    for name, parameter in engine.module.named_parameters():
        if name in saved.other:
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id")):
                parameter.data.copy_(saved.value(name))
    for name, buffer in engine.module.named_buffers():
        if name in saved.other:
            buffer.copy_(saved.value(name))


def _set_states(optimizer: torch.optim.Optimizer, states: dict[int, dict[str, torch.Tensor]]) -> None:
    """Set the states through load_state_dict, which knows where a step belongs; hyperparameters are kept."""
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _into_zero_stage_0(engine: Any, saved: _Folder) -> None:
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, parameter in (pair for group in _named_groups(engine) for pair in group):
        whole = {key: saved.fragment(name, key, 0, parameter.numel()).reshape(parameter.shape) for key in STATES}
        parameter.copy_(whole[MASTER])
        states[len(states)] = {"step": saved.step([name]), **{moment: whole[moment] for moment in MOMENTS}}
    _set_states(_optimizer(engine), states)


def _into_zero_stage_1_and_2(engine: Any, saved: _Folder) -> None:
    zero = engine.optimizer
    inner = _optimizer(engine)
    parameters = dict(engine.module.named_parameters())
    states = {}
    for number, (names, group) in enumerate(zip(parameter_names(engine), inner.param_groups, strict=True)):
        (master,) = group["params"]
        moments = {moment: torch.zeros_like(master) for moment in MOMENTS}
        for name, place in zero._param_slice_mappings[number].items():
            start = parameters[name]._hp_mapping.lp_fragment_address.start
            for key, flat in ((MASTER, master), *moments.items()):
                flat.narrow(0, place.start, place.numel).copy_(saved.fragment(name, key, start, place.numel))
        states[number] = {"step": saved.step(names), **moments}
    _set_states(inner, states)
    zero._hp_optimizer_states_linked = False
    zero._link_all_hp_params()
    zero._lazy_init_hp_params_optimizer_state()
    zero.update_lp_params()


def _into_zero_stage_3(engine: Any, saved: _Folder) -> None:
    zero = engine.optimizer
    rank = torch.distributed.get_rank()
    zero.checkpoint_event_prologue()
    masters, states = [], {}
    for number, (names, group) in enumerate(zip(parameter_names(engine), zero.fp16_groups, strict=True)):
        flat = {key: torch.zeros_like(zero.fp32_partitioned_groups_flat[number]) for key in STATES}
        offset = 0
        for name, parameter in zip(names, group, strict=True):
            part = int(parameter.partition_numel())
            owned = max(0, min(part, int(parameter.ds_numel) - rank * part))
            for key in STATES:
                flat[key].narrow(0, offset, owned).copy_(saved.fragment(name, key, rank * part, owned))
            offset += part
        masters.append(flat.pop(MASTER))
        states[number] = {"step": saved.step(names), **flat}
    # DeepSpeed empties the groups of its optimizer outside of a step.
    zero._set_fp32_optimizer_param_groups()
    groups = zero.optimizer.state_dict()["param_groups"]
    zero._clear_fp32_optimizer_param_groups()
    own = {
        "loss_scaler": zero.loss_scaler,
        "dynamic_loss_scale": zero.dynamic_loss_scale,
        "overflow": zero.overflow,
        "optimizer_state_dict": {"state": states, "param_groups": groups},
        "fp32_flat_groups": masters,
    }
    zero.load_state_dict({rank: own})
    zero.checkpoint_event_epilogue()
