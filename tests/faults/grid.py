"""The full grid: every stage of a recipe, on a local disk and on a real S3 server, killed hundreds of times.

    python -m tests.faults.grid --kills 1000 --real 12 --seed 1

In process, a run is killed once before, amid and after every operation on storage, in an empty output and in one that
holds a finished run of another input, then at operations drawn from the seed until there were `--kills` of them on each
store; then `--real` times kill -9 on each store at processes of a run on Spark. Every output is compared with an
undisturbed run, by digests, by a plain reader and by `verify`. Prints two tables in Markdown; exit code 1 when a row
was lost or doubled. 20 minutes on two busy cores.
"""

import datetime
import os
import platform
import random
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from etl.storage.location import Location
from tests.faults.chain import Draw, Kills, at_random, everywhere, killed_again_and_again
from tests.faults.real import SPARK_VICTIMS, RealKills, Victim, kill_one_by_one, spark_command
from tests.faults.recipes import STAGES, Finding, Reference, recipe_at, run_here, write_conf, write_sources
from tests.services.s3 import s3_server

STORES = ("local", "s3")
CUTTING_BYTES = 1 << 20
"""Of the runs on Spark: one split a file and one bucket."""
Outputs = Iterator[Location]


@dataclass
class Cell:
    """One stage on one store."""

    kills: int = 0
    survived: int = 0
    lost: int = 0
    doubled: int = 0


@dataclass
class Score:
    """What a store went through."""

    cells: dict[str, Cell] = field(default_factory=lambda: {stage: Cell() for stage in STAGES})
    real: Counter[Victim] = field(default_factory=Counter)
    real_survived: int = 0
    real_runs: int = 0
    wrong: list[str] = field(default_factory=list)

    def add_chain(self, kills: Kills, finding: Finding) -> None:
        self.wrong += [f"half-written: {folder}" for folder in kills.half_written]
        self._add_finding(finding)
        for stage, count in kills.by_stage.items():
            self.cells[stage].kills += count
            self.cells[stage].survived += 0 if stage in finding.stages else count

    def add_real(self, kills: RealKills, findings: list[Finding]) -> None:
        for finding in findings:
            self._add_finding(finding)
        self.real += Counter(victim for victim, _ in kills.kills)
        self.real_runs += kills.runs
        if not any(finding.stages for finding in findings):
            self.real_survived += len(kills.kills)

    def _add_finding(self, finding: Finding) -> None:
        self.wrong += [line for lines in finding.differences.values() for line in lines]
        for stage in STAGES:
            self.cells[stage].lost += finding.lost[stage]
            self.cells[stage].doubled += finding.doubled[stage]

    @property
    def num_kills(self) -> int:
        return sum(cell.kills for cell in self.cells.values())

    @property
    def is_right(self) -> bool:
        return not self.wrong and not any(cell.lost or cell.doubled for cell in self.cells.values())


@dataclass(frozen=True)
class Grid:
    """What all chains share."""

    folder: Path
    sources: dict[str, Path]
    console: Console

    def undisturbed(self, cutting_bytes: int) -> Reference:
        output = Location.of(self.folder / f"undisturbed-{cutting_bytes}")
        run_here(recipe_at(output, self.sources, cutting_bytes))
        return Reference.of(output)

    def kill_in_process(self, score: Score, outputs: Outputs, num_kills: int, seed: int) -> None:
        """Chains until there were this many kills."""
        reference = self.undisturbed(8192)
        older = write_sources(self.folder / "older", more_rows=5)
        for number, next_run in enumerate(_draws(seed)):
            if score.num_kills >= num_kills:
                return
            output = next(outputs)
            if number % 2:
                # Everything in the output is of another input and has to go.
                run_here(recipe_at(output, older))
            kills = killed_again_and_again(recipe_at(output, self.sources), output, next_run)
            score.add_chain(kills, reference.check(output))
            self.console.print(f"{output.url}: {score.num_kills} kills in process")

    def kill_processes(self, score: Score, outputs: Outputs, num_kills: int, seed: int) -> None:
        """One chain of runs on Spark, as many victims of each kind as possible."""
        reference = self.undisturbed(CUTTING_BYTES)
        victims = [*SPARK_VICTIMS * -(-num_kills // len(SPARK_VICTIMS))][:num_kills]
        random.Random(seed).shuffle(victims)
        used: list[Location] = []

        def commands() -> Iterator[tuple[str, list[str]]]:
            for output in outputs:
                used.append(output)
                conf = write_conf(recipe_at(output, self.sources, CUTTING_BYTES), self.folder / f"{output.name}.yaml")
                yield output.url, spark_command(conf)

        kills = kill_one_by_one(commands(), victims, seed, self.folder)
        score.add_real(kills, [reference.check(output) for output in used])
        self.console.print(f"{used[0].url}: {len(kills.kills)} processes killed in {kills.runs} runs")


def _draws(seed: int) -> Iterator[Draw]:
    yield everywhere()
    yield everywhere()
    while True:
        yield at_random(seed)
        seed += 1


def _outputs(make: Callable[[str], Location], prefix: str) -> Outputs:
    number = 0
    while True:
        yield make(f"{prefix}-{number}")
        number += 1


def stage_table(scores: dict[str, Score]) -> Table:
    """Stage by store."""
    table = Table(box=MARKDOWN)
    table.add_column("stage")
    for store in scores:
        table.add_column(f"{store}: kills survived / kills", justify="right")
    table.add_column("rows lost", justify="right")
    table.add_column("rows doubled", justify="right")
    for stage in (*STAGES, "all"):
        cells = [_total(score, stage) for score in scores.values()]
        counts = [f"{cell.survived} / {cell.kills}" for cell in cells]
        table.add_row(stage, *counts, str(sum(cell.lost for cell in cells)), str(sum(cell.doubled for cell in cells)))
    return table


def _total(score: Score, stage: str) -> Cell:
    if stage != "all":
        return score.cells[stage]
    cells = score.cells.values()
    return Cell(*(sum(getattr(cell, name) for cell in cells) for name in ("kills", "survived", "lost", "doubled")))


def real_table(scores: dict[str, Score]) -> Table:
    """kill -9 by victim and store."""
    table = Table(box=MARKDOWN)
    columns = ("store", *SPARK_VICTIMS, "survived / kills", "starts of the run")
    for column in columns:
        table.add_column(column, justify="left" if column == "store" else "right")
    for store, score in scores.items():
        killed = [str(score.real[victim]) for victim in SPARK_VICTIMS]
        table.add_row(store, *killed, f"{score.real_survived} / {score.real.total()}", str(score.real_runs))
    return table


def main(
    kills: Annotated[int, typer.Option(help="Least kills in process, on each store.")] = 1000,
    real: Annotated[int, typer.Option(help="kill -9 of real processes, on each store.")] = 12,
    seed: Annotated[int | None, typer.Option(help="Of the moments; another one each time unless given.")] = None,
) -> None:
    """Run the grid and print its tables."""
    console = Console(width=120)
    seed = secrets.randbelow(1 << 32) if seed is None else seed
    began = datetime.datetime.now(datetime.UTC)
    console.print(f"seed {seed}, {began:%Y-%m-%d}, {os.cpu_count()} cores, {platform.platform()}")
    scores = {store: Score() for store in STORES}
    with tempfile.TemporaryDirectory(prefix="stillhouse-faults-") as name, s3_server(Path(name) / "s3") as server:
        folder = Path(name)
        grid = Grid(folder, write_sources(folder / "sources"), console)
        bucket = server.bucket("grid")
        makers: dict[str, Callable[[str], Location]] = {
            "local": lambda output: Location.of(folder / output),
            "s3": lambda output: Location.of(f"{bucket}/{output}", server.options),
        }
        for store, make in makers.items():
            grid.kill_in_process(scores[store], _outputs(make, f"{store}-chain"), kills, seed)
            if real:
                grid.kill_processes(scores[store], _outputs(make, f"{store}-real"), real, seed)
    minutes = (datetime.datetime.now(datetime.UTC) - began).total_seconds() / 60
    console.print(stage_table(scores), real_table(scores), f"{minutes:.0f} minutes", sep="\n")
    for line in [line for score in scores.values() for line in score.wrong]:
        console.print(line, style="red")
    sys.exit(0 if all(score.is_right for score in scores.values()) else 1)


if __name__ == "__main__":
    typer.run(main)
