"""Trains an n-gram model on a seeded sample of a dataset and writes it where a recipe can name it.

    python -m jobs.train_kenlm --dataset DIR/ingest --output FILE --order 3 --fraction 0.1 --seed 0

Reads id and messages once, holds the sampled texts in memory, and prints the perplexity step that uses the model.
A recipe with a `kenlm` stage does the same inside a run, on the rows that are alive at that point.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from etl.errors import ConfigError
from etl.scoring.kenlm_train import MAX_WORDS, TrainedModel, backend_line, sample_lines, train
from etl.scoring.perplexity import TEXTS
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from jobs.entry import ERR, main_of, report


def main(argv: list[str]) -> int:
    """Exit code of one training: 0, or 2 for what the user can mend."""
    options = _parser().parse_args(argv)

    def job() -> int:
        model = _train(options)
        report(f"- kind: perplexity\n  model: {Location.of(options.output)}\n  sha256: {model.sha256}")
        report(f"  text: {options.text}\n  sample_fraction: {options.fraction}\n  sample_seed: {options.seed}")
        return 0

    return main_of(job)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.train_kenlm", description="Train an n-gram model.")
    parser.add_argument("--dataset", required=True, help="folder of a committed dataset with id and messages")
    parser.add_argument("--output", required=True, help="file or URL of the model")
    parser.add_argument("--order", type=int, default=3, help="words of the longest n-gram, 2 to 5 (default 3)")
    parser.add_argument("--fraction", type=float, default=0.1, help="fraction of the rows (default 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample (default 0)")
    parser.add_argument("--text", choices=sorted(TEXTS), default="full", help="which messages (default full)")
    parser.add_argument(
        "--max-words", type=int, default=MAX_WORDS, help=f"largest corpus without lmplz (default {MAX_WORDS:,})"
    )
    return parser


def _train(options: argparse.Namespace) -> TrainedModel:
    if not 0 < options.fraction <= 1:
        raise ConfigError(f"--fraction {options.fraction} is not above 0 and at most 1")
    if options.seed < 0:
        raise ConfigError(f"--seed {options.seed} is negative; seeds are 0 or more")
    dataset = Dataset.open(options.dataset)
    lines = sample_lines(_texts(dataset, options.text), options.seed, options.fraction)
    ERR.print(backend_line(options.max_words), markup=False)
    with tempfile.TemporaryDirectory(prefix="stillhouse-kenlm-") as folder, ERR.status("training"):
        model = train(lines, options.order, Path(folder) / "model", options.max_words)
        Location.of(options.output).upload(model.path)
    ERR.print(f"{model.words:,} words, order {options.order}, written to {options.output}", markup=False)
    return model


def _texts(dataset: Dataset, text: str) -> Iterator[pa.RecordBatch]:
    """`id` and the chosen text of every row."""
    for batch in dataset.read(["id", "messages"]):
        yield pa.RecordBatch.from_arrays([batch.column("id"), TEXTS[text](batch)], ["id", "text"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
