"""Decides whether a run may resume: compares the stages of the checkpoint with those of the configuration.

A checkpoint's payload holds, beside the run's state, a `RunOutline`: of each stage its name, target, optimizer, stop
rule and arms, and of each arm its share, its loss and what decides its documents. Stages are known by their names, in
order:

- Those that are over and the one that has begun are the first ones of the configuration. Their arms and what decides
  their documents stay, because later stages go on from what they read; so does the target of a stage that another one
  has followed, unless it is lowered, which has no effect.
- Of the stage that has begun all else may change (target, optimizer, stop rule, loss). Each change is said, and so is a
  rate that jumps by it.
- Stages that have not begun are free.

Anything else is refused with both lists. All of it is a function of the outline, the state and the configuration.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from etl.conf import check
from etl.config import Config
from etl.errors import ConfigError, DataError
from training.data.stream.plan import StreamConfig
from training.engine.optimizer import OptimizerConfig
from training.losses.objective import Objective
from training.stages.schedule import ArmConfig, StageConfig, optimizer_of
from training.stages.state import TrainState
from training.stages.stream import RunStreams

PAYLOAD_KEY: Final = "run"
"""Of the outline in a checkpoint's payload."""
RATE_JUMP: Final = 0.01
"""Relative change of the rate between two starts at one token that is said."""


class ArmOutline(Config):
    """What an arm was."""

    name: str
    share: float
    objective: dict[str, Any]
    """In JSON types, without defaults; of a class from outside the package all of it, its `version` and `code`, the
    digest of its source."""
    documents: dict[str, Any]
    """The fingerprint of its StreamConfig."""
    places: dict[str, str | None]
    """Where they lie: corpus, teacher, reference."""


class StageOutline(Config):
    """What a stage was."""

    name: str
    tokens: int
    optimizer: dict[str, Any]
    """The settings of the run with those of the stage."""
    stop: dict[str, Any] | None
    reset: bool
    arms: tuple[ArmOutline, ...]


class RunOutline(Config):
    """What a run was made of, as far as it decides what its stages train."""

    seed: int
    stages: tuple[StageOutline, ...]
    settings: dict[str, Any] | None
    """Sections that every stage shares and that enter its losses, without defaults; None where they are not known."""

    @classmethod
    def of(
        cls,
        stages: Sequence[StageConfig],
        streams: RunStreams,
        optimizer: OptimizerConfig,
        settings: Mapping[str, Config | None],
    ) -> "RunOutline":
        """The outline of a configuration; `settings` are its sections of that name."""
        return cls(
            seed=streams.seed,
            stages=tuple(
                _stage_outline(stage, streams, optimizer_of(optimizer, stage).in_stage(number == 0))
                for number, stage in enumerate(stages)
            ),
            settings={name: None if one is None else one.fingerprinted() for name, one in settings.items()},
        )

    @classmethod
    def of_run_json(cls, found: Mapping[str, Any]) -> "RunOutline":
        """The outline that a run's run.json holds (training/record/run_record.py); no objective is imported.

        Raises:
            ConfigError: a key of it is not known any more.
        """
        config = found["config"]
        code = found.get("code", {})
        stages = tuple(_of_run_json(stage, config, code) for stage in config["stages"])
        return cls(seed=config["seed"], stages=stages, settings=None)

    @property
    def names(self) -> list[str]:
        """Of the stages."""
        return [stage.name for stage in self.stages]


def _stage_outline(stage: StageConfig, streams: RunStreams, optimizer: OptimizerConfig) -> StageOutline:
    return StageOutline(
        name=stage.name,
        tokens=stage.tokens,
        optimizer=optimizer.model_dump(mode="json"),
        stop=None if stage.stop is None else stage.stop.model_dump(mode="json"),
        reset=stage.reset,
        arms=tuple(_arm_outline(arm, streams.config_of(stage, arm)) for arm in stage.arms),
    )


def _arm_outline(arm: ArmConfig, data: StreamConfig) -> ArmOutline:
    return ArmOutline(
        name=arm.name,
        share=arm.share,
        objective=_objective(arm.objective),
        documents=data.fingerprinted(),
        places={name: getattr(data, name) for name in ("corpus", "teacher", "reference")},
    )


def _objective(objective: Objective) -> dict[str, Any]:
    is_foreign = ":" in objective.kind
    given = objective.model_dump(mode="json", exclude_defaults=not is_foreign)
    return {**given, "kind": objective.kind, **objective.code()}


def _of_run_json(stage: dict[str, Any], config: dict[str, Any], code: dict[str, Any]) -> StageOutline:
    origin = f"stage '{stage['name']}' in run.json"
    optimizer = check(OptimizerConfig, {**config["optimizer"], **stage["optimizer"]}, origin)
    arms = []
    for arm in stage["arms"]:
        data = check(StreamConfig, {**config["data"], **stage["data"], **arm["data"]}, origin)
        objective = arm["objective"]
        if ":" in objective["kind"]:
            known = _arm_outline(ArmConfig(name=arm["name"], share=arm["share"]), data)
            arms.append(known.model_copy(update={"objective": {**objective, **code.get(objective["kind"], {})}}))
        else:
            arms.append(_arm_outline(check(ArmConfig, arm, origin, allow_code=False), data))
    return StageOutline(
        name=stage["name"],
        tokens=stage["tokens"],
        optimizer=optimizer.model_dump(mode="json"),
        stop=stage["stop"],
        reset=stage["reset"],
        arms=tuple(arms),
    )


# --- the payload of a checkpoint -------------------------------------------------------------------------------------


def payload_of(state: TrainState, outline: RunOutline) -> dict[str, Any]:
    """What a checkpoint keeps of a run, in JSON types."""
    return {**state.to_json(), PAYLOAD_KEY: outline.model_dump(mode="json")}


def of_payload(payload: Mapping[str, Any]) -> tuple[TrainState, RunOutline | None]:
    """What `payload_of` was given; no outline where an earlier version wrote it.

    Raises:
        DataError: the outline is damaged.
    """
    state = TrainState.from_json({key: value for key, value in payload.items() if key != PAYLOAD_KEY})
    found = payload.get(PAYLOAD_KEY)
    try:
        return state, None if found is None else RunOutline.model_validate(found)
    except ValidationError as error:
        raise DataError(f"what the checkpoint of step {state.step} says of its stages is damaged: {error}") from error


def adopted(state: TrainState, beside: RunOutline | None, now: RunOutline) -> tuple[RunOutline, str]:
    """What a state without a outline was made with, and a line that says how that is known.

    Args:
        state: of a checkpoint that an earlier version wrote.
        beside: the outline of the run.json in the run's output; None where there is none.
        now: the outline of the configuration.

    Raises:
        ConfigError: its stages cannot be known.
    """
    index = state.stage.index
    whole = f"the checkpoint of step {state.step} is from a version that did not keep its stages"
    if beside is not None and index < len(beside.stages):
        return beside, f"{whole}; they are taken from the run.json beside it"
    if index > 0:
        raise ConfigError(
            f"{whole}, and there is no run.json beside it that names them: it stands in stage {index + 1} of its list, "
            f"which cannot be compared with {_quoted(now.names)}; restore run.json, continue with the version that "
            "wrote the checkpoint, or give this run another `output`"
        )
    return now, f"{whole}; it stands in the first one, which is taken for '{now.names[0]}'"


def place(was: RunOutline, state: TrainState) -> str:
    """Where a run resumes, for the user."""
    here = state.stage
    stage = was.stages[here.index] if here.index < len(was.stages) else None
    told = f" (stage '{stage.name}', {here.tokens:,} of {stage.tokens:,} tokens)" if stage and here.steps else ""
    return f"resumed from step {state.step}{told}"


# --- the comparison --------------------------------------------------------------------------------------------------


def compare(was: RunOutline, now: RunOutline, state: TrainState) -> list[str]:
    """What differs between what a checkpoint was made with and the configuration; one line each, for the user.

    Args:
        was: the outline of the checkpoint.
        now: the outline of the configuration.
        state: of the checkpoint.

    Raises:
        ConfigError: the run cannot go on with it; holds both lists.
    """
    fixed = num_fixed(state)
    if was.names[:fixed] != now.names[:fixed]:
        raise ConfigError(_both_lists(was, now, state))
    if fixed and was.seed != now.seed:
        raise ConfigError(
            f"seed was {was.seed} and is {now.seed}, but it decides which documents and arms come when, and the run "
            f"has taken {state.step} steps; set it back, or give this run another `output`"
        )
    lines = [] if was.settings is None or now.settings is None else _changes(was.settings, now.settings)
    for number, (old, new) in enumerate(zip(was.stages[:fixed], now.stages, strict=False)):
        _check_arms(old, new)
        is_over = number < state.stage.index
        lines += _of_ended(old, new) if is_over else _of_current(old, new, state.stage.tokens)
    return [*lines, *_of_rest(was.stages[fixed:], now.stages[fixed:])]


def num_fixed(state: TrainState) -> int:
    """Stages at the start of the list that stay: those that are over, and the current one if it has begun."""
    return state.stage.index + (state.stage.steps > 0)


def _both_lists(was: RunOutline, now: RunOutline, state: TrainState) -> str:
    index, begun = state.stage.index, state.stage.steps > 0
    told = [f"'{name}' (done)" for name in was.names[:index]]
    if begun:
        told += [f"'{was.names[index]}' (begun: {state.stage.tokens:,} of {was.stages[index].tokens:,} tokens)"]
    fixed = num_fixed(state)
    told += [f"'{name}'" for name in was.names[fixed:]]
    return (
        f"the stages are not those that the run was trained with. The checkpoint of step {state.step} has "
        f"{', '.join(told)}; the configuration has {_quoted(now.names)}. Stages that are done or started cannot be "
        "renamed, moved or removed, and nothing can be put before them: let the list begin with "
        f"{_quoted(was.names[:fixed])} (what "
        "comes behind is free), or give this run another `output`"
    )


def _check_arms(old: StageOutline, new: StageOutline) -> None:
    """Refuse other arms or documents of a stage that has begun."""
    arms = [[(arm.name, arm.share) for arm in stage.arms] for stage in (old, new)]
    if arms[0] != arms[1]:
        lists = [", ".join(f"'{name}' (share {share:g})" for name, share in one) for one in arms]
        raise ConfigError(
            f"the arms of stage '{old.name}', which has begun, were {lists[0]} and are {lists[1]}; names, order and "
            "shares decide which step belongs to which arm: put them back, change them in a stage that has not begun, "
            "or give this run another `output`"
        )
    for before, after in zip(old.arms, new.arms, strict=True):
        changes = _changes(_stream(before), _stream(after), "data")
        if changes:
            raise ConfigError(
                f"stage '{old.name}', arm '{before.name}' began with another stream: {', '.join(changes)}; that "
                "decides its documents: put it back, change it in a stage that has not begun, or give this run "
                "another `output`"
            )


def _of_current(old: StageOutline, new: StageOutline, tokens: int) -> Iterator[str]:
    """What changed of the stage that has begun."""
    changes = _changes(_settings(old), _settings(new))
    yield from (f"stage '{old.name}': {change}" for change in changes)
    if old.reset != new.reset:
        yield f"stage '{old.name}': reset changed from {old.reset} to {new.reset}, without effect: it has begun"
    rates = [_optimizer(stage).learning_rate(max(tokens, 1), stage.tokens) for stage in (old, new)]
    if abs(rates[1] - rates[0]) > RATE_JUMP * max(rates):
        reasons = [change for change in changes if change.startswith(("tokens", "optimizer.lr", "optimizer.schedule"))]
        yield (
            f"stage '{old.name}': the rate at its token {tokens:,} was {rates[0]:.3g} and is {rates[1]:.3g}, since "
            f"{' and '.join(reasons)}"
        )


def _of_ended(old: StageOutline, new: StageOutline) -> Iterator[str]:
    """What changed of a stage that another one has followed."""
    if new.tokens > old.tokens:
        raise ConfigError(
            f"tokens of stage '{old.name}' was raised from {old.tokens:,} to {new.tokens:,}, but that stage is "
            "over and another one has followed, so it would have no effect; undo that, and add a stage at the end"
        )
    changes = _changes({**_settings(old), "reset": old.reset}, {**_settings(new), "reset": new.reset})
    if changes:
        yield f"stage '{old.name}' is over, so this has no effect: {', '.join(changes)}"


def _of_rest(was: Sequence[StageOutline], now: Sequence[StageOutline]) -> Iterator[str]:
    """What changed of the stages that have not begun."""
    names = [[stage.name for stage in stages] for stages in (was, now)]
    if names[0] != names[1]:
        yield f"the stages that have not begun were {_quoted(names[0])} and are {_quoted(names[1])}"
    before = {stage.name: stage for stage in was}
    for stage in now:
        if stage.name in before:
            for change in _changes(_whole(before[stage.name]), _whole(stage)):
                yield f"stage '{stage.name}', which has not begun: {change}"


def _settings(stage: StageOutline) -> dict[str, Any]:
    """What may change of a stage that has begun."""
    arms = {arm.name: {"objective": arm.objective, "data": arm.places} for arm in stage.arms}
    return {
        "tokens": stage.tokens,
        "optimizer": _optimizer(stage).model_dump(mode="json"),
        "stop": stage.stop,
        **_by_arm(arms),
    }


def _whole(stage: StageOutline) -> dict[str, Any]:
    """All of a stage."""
    arms = {
        arm.name: {"share": arm.share, "objective": arm.objective, "data": {**_stream(arm), **arm.places}}
        for arm in stage.arms
    }
    return {**_settings(stage), "reset": stage.reset, "arms": list(arms), **_by_arm(arms)}


def _by_arm(arms: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the arms have, under their names where there are several."""
    return next(iter(arms.values())) if len(arms) == 1 else {f"arm '{name}'": values for name, values in arms.items()}


def _optimizer(stage: StageOutline) -> OptimizerConfig:
    return check(OptimizerConfig, stage.optimizer, f"the optimizer of stage '{stage.name}' in the checkpoint")


def _stream(arm: ArmOutline) -> dict[str, Any]:
    """What decides the documents of an arm, defaults filled in."""
    origin = f"data of arm '{arm.name}' in the checkpoint"
    found = check(StreamConfig, {"corpus": "", **arm.documents}, origin)
    return found.model_dump(mode="json", exclude=set(StreamConfig.located))


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key changed from … to …` for each leaf that differs, keys with dots."""
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        name = f"{prefix}.{key}" if prefix else key
        before, after = (side.get(key, "its default") for side in (old, new))
        if isinstance(before, dict) and isinstance(after, dict):
            found += _changes(before, after, name)
        elif before != after:
            found.append(f"{name} changed from {_shown(before)} to {_shown(after)}")
    return found


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return (
        json.dumps(value, ensure_ascii=False) if value is None or isinstance(value, bool | dict | list) else str(value)
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
