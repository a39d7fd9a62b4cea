"""The training commands of `stillhouse`; each loads torch only when it runs."""

import json
import sys
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from etl.console import OUT, AllowCode, Json, Overrides, command, examples, report, report_json, warn
from etl.errors import ConfigError

if TYPE_CHECKING:
    from training.config import TrainConfig
    from training.stages.dry_run import ArmPlan

app = typer.Typer()

ConfName = Annotated[str, typer.Argument(metavar="CONF", help="A shipped configuration's name, a path or a URI.")]


@app.command(
    "train",
    epilog=examples(
        "stillhouse train demo --set data.corpus=out/corpus --set output=student",
        "stillhouse train mine.yaml --nproc 8 --set data.corpus=s3://team/corpus/corpus --set output=/scratch/student",
    ),
)
@command
def train_command(
    name: ConfName,
    set_: Overrides,
    nproc: Annotated[
        int,
        typer.Option(
            min=0, help="Number of processes to start and supervise on this machine; 0 trains in this process."
        ),
    ] = 0,
    nnodes: Annotated[int, typer.Option(min=1, help="Number of machines.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Rank of this machine, from 0.")] = 0,
    master_addr: Annotated[str, typer.Option(help="Address of machine 0.")] = "127.0.0.1",
    master_port: Annotated[
        int | None, typer.Option(help="A free port of machine 0; required with several machines.")
    ] = None,
    grace: Annotated[float, typer.Option(min=0, help="Seconds to save a checkpoint after SIGTERM.")] = 300.0,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON line per logged step, then the result.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would be trained and how much memory it needs. Trains nothing."),
    ] = False,
    overfit: Annotated[
        bool,
        typer.Option("--overfit-one-batch", help="Train on the first batch only, to see that the model can learn it."),
    ] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Profile some steps with torch's profiler.")] = False,
    allow_code: AllowCode = False,
) -> int:
    """Train a student, in this process or in --nproc N supervised ones. Run again to resume."""
    if dry_run:
        return _dry_run(_loaded(name, set_, allow_code), max(nproc, 1) * nnodes, json_)
    flags = [*(["--json"] if json_ else []), *(["--overfit-one-batch"] if overfit else [])]
    flags += [*(["--profile"] if profile else []), *(["--allow-code"] if allow_code else [])]
    words = ["--conf", name, *(word for item in set_ for word in ("--set", item)), *flags]
    if nproc == 0:
        from training.train import main

        return main(words)
    from training.launch.supervisor import Ranks, supervise

    ranks = Ranks(nproc, nnodes, node_rank, master_addr, master_port)
    return supervise([sys.executable, "-m", "training.train", *words], ranks, grace)


def _loaded(name: str, overrides: list[str], allow_code: bool) -> "TrainConfig":
    from etl import conf
    from training.config import TrainConfig

    return conf.load(TrainConfig, name, "training", overrides, allow_code)


def _dry_run(config: "TrainConfig", world_size: int, as_json: bool) -> int:
    from training.stages.dry_run import dry_run
    from training.stages.stream import outdated_corpora

    found = dry_run(config, world_size)
    for line in outdated_corpora(config.streams, config.stages):
        warn(line)
    if as_json:
        report_json(found.to_json())
        return 0
    for arm in found.arms:
        _show(f"{arm.stage} / {arm.arm} ({arm.objective})", _in_words(arm))
        _show(f"{arm.stage} / {arm.arm}: tokens by cell", arm.cells)
    _show_memory(found.memory)
    report(f"DeepSpeed: {json.dumps(found.deepspeed)}")
    return 0


def _in_words(arm: "ArmPlan") -> dict[str, Any]:
    return {
        "documents in the corpus": arm.available_documents,
        "tokens in the corpus": arm.available_tokens,
        **{f"left out, {reason}": count for reason, count in arm.left_out.items()},
        "steps": arm.steps,
        "packs": arm.packs,
        "packs are full to": f"{arm.fill:.1%}",
        "tokens": arm.tokens,
        "epochs": arm.passes,
        "the stage ends": arm.stage_ends,
    }


def _show(title: str, values: dict[str, Any]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for key, value in values.items():
        table.add_row(
            key, f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value
        )
    OUT.print(table)


def _show_memory(by_zero_stage: dict[int, dict[str, int]]) -> None:
    table = Table(title="Memory per GPU (GiB), by ZeRO stage", title_justify="left")
    table.add_column()
    for zero_stage in by_zero_stage:
        table.add_column(str(zero_stage), justify="right")
    for name in next(iter(by_zero_stage.values()), {}):
        table.add_row(name, *(f"{memory[name] / 2**30:.2f}" for memory in by_zero_stage.values()))
    OUT.print(table)


@app.command(
    "stream-digest",
    epilog=examples(
        "stillhouse stream-digest demo --world-size 8 --steps 100 --set data.corpus=out/corpus --set output=student"
    ),
)
@command
def stream_digest_command(
    name: ConfName,
    set_: Overrides,
    world_size: Annotated[int, typer.Option(min=1, help="Number of ranks to read as.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Reading threads per rank; overrides read.workers.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of global steps.")] = 16,
    resume_at: Annotated[int | None, typer.Option(min=0, help="Stop after this many steps and resume.")] = None,
    stage: Annotated[str | None, typer.Option(help="A stage of the configuration; default: the first.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Print the SHA-256 of the global token stream. It does not depend on --world-size, --workers or --resume-at.

    Earlier stages are assumed to end at their target or when their documents run out.
    """
    from training.data.digest import stream_digest
    from training.data.stream.decisions import DecisionLog
    from training.stages.dry_run import plan_stages

    if resume_at is not None and resume_at > steps:
        raise ConfigError(f"--resume-at {resume_at} is beyond --steps {steps}; lower it")
    threads = [] if workers is None else [f"read.workers={workers}"]
    config = _loaded(name, [*set_, *threads], allow_code)
    config.check()
    chosen = config.stage_named(stage)
    before = plan_stages(config.streams, config.stages[: config.stages.index(chosen)])
    finished = [plan.finished for plan in before]
    open_stream = partial(config.streams.open_stage, chosen, open_log=DecisionLog.preview, finished=finished)
    report(stream_digest(open_stream, world_size, steps, resume_at))


@app.command(
    "decide",
    epilog=examples(
        'stillhouse decide mine.yaml --segment 3 --kind weights --value \'{"weights": "uniform"}\' --set output=student'
    ),
)
@command
def decide_command(
    name: ConfName,
    segment: Annotated[int, typer.Option(min=1, help="First segment to apply it to; it must not have started.")],
    kind: Annotated[str, typer.Option(help="weights, phase, modes or stage.")],
    value: Annotated[str, typer.Option(help='JSON, e.g. \'{"shares": {"B1/*": 0.4, "*": 0.6}}\'.')],
    set_: Overrides,
    stage: Annotated[str | None, typer.Option(help="A stage of the configuration; default: the first.")] = None,
    arm: Annotated[str | None, typer.Option(help="An arm of the stage; default: the first.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Change what a run's stream draws, from a later segment on. A decision is final."""
    from etl import conf
    from training.data.stream.decisions import DecisionLog

    config = _loaded(name, set_, allow_code)
    chosen = config.stage_named(stage)
    log = DecisionLog.existing(config.streams.log_folder(chosen, chosen.arm_named(arm)))
    decided = conf.parse_yaml(value, "--value")
    if not isinstance(decided, dict):
        raise ConfigError(f'--value is {value!r}; it must be a mapping, e.g. \'{{"weights": "uniform"}}\'')
    record = log.append(segment, kind, decided)
    report(f"segment {record.segment}: {record.kind} {json.dumps(record.value)}")


@app.command("check-model", epilog=examples("stillhouse check-model demo"))
@command
def check_model_command(name: ConfName, set_: Overrides, allow_code: AllowCode = False) -> int:
    """Check that a model meets the trainer's requirements; exit code 1 if not. Needs no corpus."""
    from etl import conf
    from training.config import ModelSection
    from training.models.check_model import check_model
    from training.models.check_model import report as table_of

    config = conf.load(ModelSection, name, "training", set_, allow_code)
    findings = check_model(config.model, config.seed)
    OUT.print(table_of(findings))
    return 0 if all(finding.passed for finding in findings) else 1


@app.command("rescore", epilog=examples("stillhouse rescore demo --set corpus=out/corpus"))
@command
def rescore_command(name: ConfName, set_: Overrides) -> None:
    """Compute a teacher's log-probabilities of a corpus. Finished parts are skipped."""
    from jobs.rescore import run

    run(name, set_)


@app.command("export", epilog=examples("stillhouse export student exported"))
@command
def export_command(
    run: Annotated[str, typer.Argument(help="A training run's output, or one checkpoint in it.")],
    target: Annotated[str, typer.Argument(help="Folder or URL to write.")],
    allow_code: AllowCode = False,
    json_: Json = False,
) -> None:
    """Export a trained student as a folder for transformers, with tokenizer, chat template and data manifest."""
    from training.export.export import export

    folder = export(run, target, allow_code)
    if json_:
        report_json({"folder": str(folder)})
    else:
        report(f"exported to {folder}")


@app.command("evaluate", epilog=examples("stillhouse evaluate demo"))
@command
def evaluate_command(name: ConfName, set_: Overrides, json_: Json = False) -> None:
    """Evaluate an exported student and baselines; print and write a table."""
    from etl import conf
    from training.evaluate.report import EvaluateConfig, evaluate_conf

    found = evaluate_conf(conf.load(EvaluateConfig, name, "evaluate", set_))
    if json_:
        report_json(asdict(found))
        return
    for line in found.to_markdown().splitlines():
        report(line)
