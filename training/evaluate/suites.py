"""The suites of an evaluation: each is a section of the YAML with `run(models, folder)` -> numbers by name.

held_out     loss of a corpus's split by cell and span kind; with a teacher, KL(teacher || student), too (canaries are
             a corpus of their own)
format       the share of greedy completions of validation prompts that are well-formed Harmony
reasoning    the share of questions of a JSONL file whose final answer is right (etl.answers)
lm_eval      tasks of the LM Evaluation Harness from a local folder of task files

Sums are float64. Memory: one pack, or one batch of completions, beside the model (and the teacher).
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from etl.answers.final import final_answer, stated_answer
from etl.answers.judge import Judge
from etl.config import Config
from etl.errors import ConfigError, DataError, said
from etl.harmony.parse import parse
from etl.harmony.vocabulary import CALL, ENDOFTEXT, RETURN, START
from etl.schema import SPAN_KINDS
from etl.storage.location import Location
from training.data.cell_packs import packs_by_cell
from training.data.collate import Pack, collate
from training.data.reader import CorpusReader
from training.data.stream.plan import StreamConfig, uniform
from training.evaluate.models import Models
from training.losses.objective import CrossEntropy, Divergence, StepContext
from training.losses.spans import KINDS
from training.models.factory import Student
from training.models.tokenizer import check_tokenizer
from training.teacher.frozen import FrozenTeacher

Metrics = dict[str, float]


class _Found(NamedTuple):
    """Of some packs, float64 [kinds] each."""

    tokens: torch.Tensor
    nll: torch.Tensor
    divergence: torch.Tensor


@dataclass(frozen=True)
class _Pair:
    """A model, and perhaps the one that it is compared with."""

    student: Student
    teacher: FrozenTeacher | None

    @torch.no_grad()
    def sums(self, pack: Pack, device: torch.device) -> _Found:
        """Of one pack."""
        batch = pack.tensors(device)
        hidden, _ = self.student(batch.input_ids, batch.position_ids, batch.cu_seqlens)
        # The sums of an objective do not depend on the counts of the global batch.
        step = StepContext(torch.zeros(2 * KINDS, dtype=torch.float64, device=device), teacher=self.teacher)
        nll = CrossEntropy().loss(self.student.lm_head, hidden, batch, step).sums
        divergence = torch.zeros(KINDS, dtype=torch.float64)
        if self.teacher is not None:
            divergence = Divergence().loss(self.student.lm_head, hidden, batch, step).sums
        counts = CrossEntropy().counts(pack)[:KINDS]
        return _Found(torch.from_numpy(counts), nll.cpu(), divergence.cpu())


class HeldOutSuite(Config):
    """Loss in nats per token, as training reports it: over all supervised tokens, and by span kind."""

    needs_harmony: ClassVar[bool] = True

    kind: Literal["held_out"] = "held_out"
    corpus: str
    """Folder or URL of a committed corpus."""
    split: str = "validation"
    """Split of the corpus to evaluate on."""
    pack_tokens: int = Field(default=8192, ge=2)
    """Tokens of a forward pass; longer documents are skipped."""
    max_packs: int = Field(default=16, ge=1)
    """Packs a cell, drawn once, seeded."""
    teacher: str | None = None
    """Folder of a model with the same tokenizer, to also measure the student's divergence from it; null: none."""

    def run(self, models: Models, folder: str, seed: int) -> Metrics:
        """`loss`, `loss.<kind>`, `<cell>.loss`, and with a teacher `kl` and `<cell>.kl`.

        Raises:
            ConfigError: no document of the split fits in a pack, it holds an id that a model has no row for, or the
                teacher has another tokenizer.
        """
        teacher = None
        if self.teacher is not None:
            check_tokenizer(Path(self.teacher).expanduser())
            teacher = FrozenTeacher(models.load_packed(self.teacher), models.device, models.dtype)
        pair = _Pair(models.packed(folder), teacher)
        sizes = {"the model": len(pair.student.lm_head.weight)}
        if teacher is not None:
            sizes["the teacher"] = teacher.vocab_size
        cells: dict[str, _Found] = {}
        for cell, pack in self._packs(seed, sizes):
            found = pair.sums(pack, models.device)
            cells[cell] = _Found(*map(torch.add, cells[cell], found)) if cell in cells else found
        if not cells:
            raise ConfigError(
                f"no document of the split {self.split} of {self.corpus} fits pack_tokens = {self.pack_tokens}; "
                "raise it"
            )
        total = _Found(*(torch.stack(parts).sum(0) for parts in zip(*cells.values(), strict=True)))
        metrics = self._metrics(total)
        by_kind = zip(SPAN_KINDS, (total.nll / total.tokens).tolist(), strict=True)
        metrics |= {f"loss.{kind}": value for kind, value in by_kind if value == value}
        for cell, found in cells.items():
            metrics |= {f"{cell}.{name}": value for name, value in self._metrics(found).items()}
        return metrics

    def _metrics(self, found: _Found) -> Metrics:
        metrics = {"loss": float(found.nll.sum() / found.tokens.sum())}
        if self.teacher is not None:
            metrics["kl"] = float(found.divergence.sum() / found.tokens.sum())
        return metrics

    def _packs(self, seed: int, vocab_sizes: dict[str, int]) -> Iterator[tuple[str, Pack]]:
        """Cell and pack."""
        data = StreamConfig(corpus=self.corpus, pack_tokens=self.pack_tokens, global_batch_packs=1)
        with closing(CorpusReader(self.corpus, self.split, vocab_sizes=vocab_sizes)) as reader:
            index = reader.read_index(reader.whole, seed)
            for cell, packs in packs_by_cell(index, reader.cells, data, self.max_packs, seed):
                for chosen in packs:
                    yield cell, collate(reader.gather(index, chosen), self.pack_tokens)


class FormatSuite(Config):
    """How often a greedy completion is well-formed: optional analysis or preambles, one final message, <|return|>."""

    needs_harmony: ClassVar[bool] = True

    kind: Literal["format"] = "format"
    corpus: str
    """Folder of the corpus to take prompts from."""
    split: str = "validation"
    """Split of the corpus to take prompts from."""
    prompts: int = Field(default=100, ge=1)
    """Number of prompts, drawn with the seed. A prompt is a row up to the assistant's first message."""
    max_prompt_tokens: int = Field(default=4096, ge=1)
    """Rows with a longer prompt are skipped."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Tokens after which an answer is cut off."""
    batch_size: int = Field(default=8, ge=1)
    """Number of prompts answered at a time."""

    def run(self, models: Models, folder: str, seed: int) -> Metrics:
        """Shares that sum to 1, those of VERDICTS; `analysis`, the share with analysis before that; `prompts`.

        Raises:
            DataError: the split has no such row.
        """
        prompts = list(islice(self._prompts(seed), self.prompts))
        if not prompts:
            raise DataError(f"{self.corpus} has no conversation in the split {self.split}; give another corpus")
        said = models.generator(folder).complete(prompts, self.max_new_tokens, self.batch_size)
        judged = [judge(tokens) for tokens in said]
        shares = {name: sum(found.verdict == name for found in judged) / len(judged) for name in VERDICTS}
        thinks = sum(found.thinks for found in judged) / len(judged)
        return {**shares, "analysis": thinks, "prompts": float(len(judged))}

    def _prompts(self, seed: int) -> Iterator[list[int]]:
        """Token ids, <|start|>assistant included."""
        with closing(CorpusReader(self.corpus, self.split)) as reader:
            index = reader.read_index(reader.whole, seed)
            order = np.argsort(uniform(index.id_hash, seed, 0, 0), kind="stable")
            for start in range(0, len(order), self.prompts):
                documents = reader.gather(index, order[start : start + self.prompts])
                for tokens, spans in zip(documents.tokens, documents.spans, strict=True):
                    ids = documents.input_ids[tokens[0] : tokens[1]]
                    speaks = int(documents.span_start[spans[0]]) if spans[1] > spans[0] else 0
                    if 0 < speaks <= self.max_prompt_tokens and ids[speaks] == START:
                        yield ids[: speaks + 2].tolist()


VERDICTS = ("valid", "call", "empty", "truncated", "malformed")
"""An answer; a tool call; a final message of white space; no end within the allowed tokens; everything else."""


class Judged(NamedTuple):
    """A completion."""

    verdict: str
    """One of VERDICTS."""
    thinks: bool = False
    """Whether a well-formed one has analysis."""


def judge(completion: list[int]) -> Judged:
    """What a completion after <|start|>assistant is.

    Before the final message or the call stand messages of the channels analysis and commentary (preambles), or none. A
    completion that <|endoftext|> ends is not cut short, it ends as raw text does: malformed.
    """
    if not completion or completion[-1] not in (RETURN, CALL, ENDOFTEXT):
        return Judged("truncated")
    try:
        messages = parse(completion, next_role="assistant")
    except DataError:
        return Judged("malformed")
    if not messages or completion[-1] == ENDOFTEXT or any(message["role"] != "assistant" for message in messages):
        return Judged("malformed")
    *before, last = messages
    if any(message["recipient"] or message["channel"] not in ("analysis", "commentary") for message in before):
        return Judged("malformed")
    thinks = any(message["channel"] == "analysis" and message["content"].strip() for message in before)
    if completion[-1] == CALL:
        return Judged("call", thinks) if last["recipient"] else Judged("malformed")
    if last["channel"] != "final" or last["recipient"]:
        return Judged("malformed")
    return Judged("valid" if last["content"].strip() else "empty", thinks)


class ReasoningSuite(Config):
    """Questions with one right answer each, answered greedily and compared by their final answers."""

    needs_harmony: ClassVar[bool] = False

    kind: Literal["reasoning"] = "reasoning"
    file: str
    """JSON Lines, also .gz."""
    question: str = "question"
    """Key of the question."""
    answer: str = "answer"
    """Key of the answer: the answer itself, or a solution that states it with #### or \\boxed{}."""
    instruction: str = "Put the final answer in \\boxed{}."
    """Text after each question."""
    questions: int | None = Field(default=None, ge=1)
    """Use only this many questions, the first ones; null: all."""
    max_new_tokens: int = Field(default=2048, ge=1)
    """Tokens after which an answer is cut off."""
    batch_size: int = Field(default=8, ge=1)
    """Number of questions answered at a time."""

    def run(self, models: Models, folder: str, seed: int) -> Metrics:
        """Shares of the questions, and `questions`: their number.

        `exact_match` is right; `answered` has any answer; `guessed` states none, so its last number was taken;
        `unparseable` could not be compared, which counts as wrong; `no_final` has no final message in Harmony.

        Raises:
            ConfigError: there is no such file, or math-verify is not installed.
            DataError: the file is damaged or empty, or a line is not JSON or lacks a key.
        """
        judge = Judge()
        rows = list(islice(self._rows(), self.questions))
        if not rows:
            raise DataError(f"{self.file} has no question; give another file")
        model = models.generator(folder)
        prompts = [model.prompt(f"{question}\n\n{self.instruction}".strip()) for question, _ in rows]
        said = [model.answer(tokens) for tokens in model.complete(prompts, self.max_new_tokens, self.batch_size)]
        answers = [None if text is None else final_answer(text) for text in said]
        with judge:
            verdicts = [
                judge.compare(answer.text, gold).outcome
                for answer, (_, gold) in zip(answers, rows, strict=True)
                if answer is not None
            ]
        counts = {
            "exact_match": verdicts.count("equal"),
            "answered": len(verdicts),
            "guessed": sum(answer is not None and answer.where == "last_number" for answer in answers),
            "unparseable": verdicts.count("unparseable"),
            "no_final": said.count(None),
        }
        return {**{name: count / len(rows) for name, count in counts.items()}, "questions": float(len(rows))}

    def _rows(self) -> Iterator[tuple[str, str]]:
        """Question and right answer."""
        try:
            data = Location.of(self.file).read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise ConfigError(f"there is no file {self.file}") from error
        try:
            lines = (gzip.decompress(data) if self.file.endswith(".gz") else data).decode("utf-8").split("\n")
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise DataError(f"{self.file} is damaged, or not UTF-8 text ({said(error)}); replace it") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                question, answer = str(row[self.question]), str(row[self.answer])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"line {number} of {self.file} has no '{self.question}' and '{self.answer}' ({error!r}); set "
                    "question and answer to the keys that it has"
                ) from error
            stated = stated_answer(answer)
            yield question, stated.text if stated else answer.strip()


class LmEvalSuite(Config):
    """Tasks of the LM Evaluation Harness, with local files only; needs the extra `eval`."""

    needs_harmony: ClassVar[bool] = False

    kind: Literal["lm_eval"] = "lm_eval"
    folder: str
    """Folder of the task files (YAML); `dataset_path: json` and `data_files` in a task file make its data local."""
    tasks: list[str] = Field(min_length=1)
    """Tasks of lm-evaluation-harness."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Examples before each question; null: as the task defines."""
    limit: int | None = Field(default=None, ge=1)
    """Use only this many documents of each task, the first ones; null: all."""
    batch_size: int = Field(default=8, ge=1)
    """Requests at a time."""

    def run(self, models: Models, folder: str, seed: int) -> Metrics:
        """`<task>.<metric>`, with the harness's filter after it where it has another than `none`.

        Raises:
            ConfigError: the harness is not installed, or knows no such task.
        """
        try:
            import lm_eval
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise ConfigError(f"suite lm_eval needs the harness ({error}); install stillhouse[eval]") from error
        if not Path(self.folder).is_dir():
            raise ConfigError(f"there is no folder {self.folder}; give the local folder of the task files")
        manager = TaskManager(include_path=self.folder, include_defaults=False)
        unknown = sorted(set(self.tasks) - set(manager.all_tasks))
        if unknown:
            raise ConfigError(f"{self.folder} has no task '{unknown[0]}'; it has: {', '.join(manager.all_tasks)}")
        model = models.generator(folder)
        # No text of a corpus begins with a token of its own; what precedes one at most is the end of another.
        bos = {"add_bos_token": False, "prefix_token_id": ENDOFTEXT} if model.speaks_harmony else {}
        found: Any = lm_eval.simple_evaluate(
            model=HFLM(
                pretrained=model.model,
                tokenizer=model.tokenizer,
                batch_size=self.batch_size,
                device=str(models.device),
                **bos,
            ),
            tasks=list(self.tasks),
            task_manager=manager,
            num_fewshot=self.num_fewshot,
            limit=self.limit,
            bootstrap_iters=0,
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
        return {
            f"{task}.{name.removesuffix(',none')}": float(value)
            for task, values in found["results"].items()
            for name, value in values.items()
            if "," in name and "_stderr" not in name
        }


Suite = Annotated[HeldOutSuite | FormatSuite | ReasoningSuite | LmEvalSuite, Field(discriminator="kind")]
