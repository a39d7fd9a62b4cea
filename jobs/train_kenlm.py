"""Trains an n-gram model on a seeded sample of a dataset and writes it to a file that a recipe can use.

    python -m jobs.train_kenlm --dataset DIR/ingest --output FILE --order 3 --fraction 0.1 --seed 0

Reads id and messages once, holds the sampled texts in memory, and prints the perplexity step that uses the model.
A recipe's `kenlm` stage does the same within a run, on the rows that remain at that point.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import typer

from etl.console import ERR, command, report, run_command
from etl.errors import ConfigError
from etl.scoring.kenlm_train import MAX_WORDS, backend_line, sample_lines, train
from etl.scoring.perplexity import TEXTS
from etl.storage.dataset import Dataset
from etl.storage.location import Location


def main(argv: list[str]) -> int:
    """Exit code: 0, or 2 for an error that the user can fix."""
    return run_command(_job, argv, "python -m jobs.train_kenlm")


@command
def _job(
    dataset: Annotated[str, typer.Option(help="Folder of a committed dataset with id and messages.")],
    output: Annotated[str, typer.Option(help="File or URL to write the model to.")],
    order: Annotated[int, typer.Option(help="Longest n-gram in words, 2 to 5.")] = 3,
    fraction: Annotated[float, typer.Option(help="Fraction of the rows to train on, above 0 and at most 1.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    text: Annotated[Literal["full", "instruction", "response"], typer.Option(help="Which messages.")] = "full",
    max_words: Annotated[
        int, typer.Option(help="Largest sample, in words, that is trained without KenLM's lmplz.")
    ] = MAX_WORDS,
) -> None:
    """Train an n-gram model on a sample of a dataset."""
    if not 0 < fraction <= 1:
        raise ConfigError(f"--fraction {fraction} must be above 0 and at most 1")
    if seed < 0:
        raise ConfigError(f"--seed {seed} is negative; give 0 or more")
    lines = sample_lines(_texts(Dataset.open(dataset), text), seed, fraction)
    ERR.print(backend_line(max_words))
    with tempfile.TemporaryDirectory(prefix="stillhouse-kenlm-") as folder, ERR.status("training"):
        model = train(lines, order, Path(folder) / "model", max_words)
        Location.of(output).upload(model.path)
    ERR.print(f"{model.words:,} words, order {order}, written to {output}")
    report("- kind: perplexity")
    step = {"model": Location.of(output), "sha256": model.sha256, "text": text}
    for key, value in {**step, "sample_fraction": fraction, "sample_seed": seed}.items():
        report(f"  {key}: {value}")


def _texts(dataset: Dataset, text: str) -> Iterator[pa.RecordBatch]:
    """`id` and the chosen text of every row."""
    for batch in dataset.read(["id", "messages"]):
        yield pa.RecordBatch.from_arrays([batch.column("id"), TEXTS[text](batch)], ["id", "text"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
