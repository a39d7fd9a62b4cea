"""Checks that a student meets the requirements of packing: the conformance test of `stillhouse check-model`.

Any factory is tried on one pack of made-up documents on the CPU: each document must give the per-token losses that it
gives alone (1e-5 in float32; 2e-2 in bfloat16 where no router turns a rounding into another expert), no gradient may
reach a token of another document or a later token, or come from an unsupervised row, documents without tokens must
change nothing, and the state must be a function of the seed. A built-in factory's losses must also be those of the
transformers class that its weights are exported to, with that class's own attention. A check that fails is a finding,
not an exception, so that one run finds them all. Costs two builds, a second copy of the weights and some twenty passes
over at most 416 tokens: SmolLM2 (135 M) took 79 s and 1.9 GB on one core of a busy machine.
"""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from rich.table import Table
from rich.text import Text
from torch import nn
from torch.nn.functional import cross_entropy

from etl.errors import ConfigError
from training.models.config import ModelConfig
from training.models.factory import Student, build_student, export_state

LENGTHS = (1, 37, 160, 2, 173, 43)
"""Tokens of the documents: one of a single token, two longer than a window of 128, the last one for room."""

FP32_TOLERANCE = 1e-5
BF16_TOLERANCE = 2e-2
TRANSFORMERS_TOLERANCE = 1e-4
"""Another algorithm of attention rounds otherwise."""


@dataclass(frozen=True)
class Finding:
    """One check and how it came out."""

    name: str
    passed: bool
    measured: str
    """What was found, with its bound where there is one."""


@dataclass(frozen=True)
class Sample:
    """A made-up pack: ids and positions int64 [1, T], cu_seqlens int32 [documents + 1]."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor

    @classmethod
    def of(cls, lengths: tuple[int, ...], vocab_size: int) -> "Sample":
        """Random ids, the same for each vocabulary size."""
        generator = torch.Generator().manual_seed(0)
        return cls(
            torch.randint(vocab_size, (1, sum(lengths)), generator=generator),
            torch.cat([torch.arange(length) for length in lengths])[None],
            torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32),
        )

    @property
    def documents(self) -> list[tuple[int, int]]:
        return list(pairwise(self.cu_seqlens.tolist()))

    def alone(self, start: int, end: int) -> "Sample":
        """One document as a pack of its own."""
        cut = slice(start, end)
        whole = torch.tensor([0, end - start], dtype=torch.int32)
        return Sample(self.input_ids[:, cut], self.position_ids[:, cut], whole)

    def hidden(self, student: Student) -> torch.Tensor:
        """[T, H]"""
        return student(self.input_ids, self.position_ids, self.cu_seqlens)[0]


class ContractError(Exception):
    """A student's answer is so far from the contract that a check cannot be made; the message is the finding."""


def check_model(config: ModelConfig, seed: int) -> list[Finding]:
    """All checks of the student that a configuration describes, built from a seed.

    Raises:
        ConfigError: the student cannot be built at all.
    """
    # Compiled or recomputed layers give the same numbers later or slower; what is checked is the factory's.
    plain = config.model_copy(update={"compile": False, "gradient_checkpointing": False})
    student = build_student(plain, seed)
    digests = [_digest(student)]
    findings = _check_all(student.float().eval())
    del student
    digests.append(_digest(build_student(plain, seed)))
    same = Finding(
        "initial state", digests[0] == digests[1], f"seed {seed} twice: {', '.join(d[:12] for d in digests)}"
    )
    return [*findings, same]


def _check_all(student: Student) -> list[Finding]:
    sample = Sample.of(LENGTHS, len(student.lm_head.weight))
    whole, half = LENGTHS[2], LENGTHS[2] // 2
    findings = [
        _finding("head weight", lambda: _head(student)),
        _finding("shapes", lambda: _shapes(student, sample)),
        _finding("packed = alone, float32", lambda: _packed(student, sample, FP32_TOLERANCE)),
        _finding("no gradient across documents", lambda: _gradient(student, sample, whole)),
        _finding("no gradient from unsupervised tokens", lambda: _gradient(student, sample, half)),
        _finding("documents without tokens", lambda: _empty_documents(student, sample)),
    ]
    if student.hf_class is not None:
        findings.append(_finding("equal to transformers", lambda: _transformers(student, sample)))
    if not student.experts_per_token:
        rounded = student.bfloat16()
        findings.append(_finding("packed = alone, bfloat16", lambda: _packed(rounded, sample, BF16_TOLERANCE)))
    return findings


def _finding(name: str, check: Callable[[], tuple[bool, str]]) -> Finding:
    """A check's answer; what a user's module raises under it is an answer too."""
    try:
        passed, measured = check()
    except (ContractError, ConfigError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        return Finding(name, False, f"{type(error).__name__}: {error}")
    return Finding(name, passed, measured)


def _digest(student: Student) -> str:
    """SHA-256 of all weights."""
    digest = hashlib.sha256()
    for name, value in student.network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _head(student: Student) -> tuple[bool, str]:
    weight = student.lm_head.weight
    name = student.network.head_weight
    own = dict(student.network.named_parameters(remove_duplicate=False))
    return own[str(name)] is weight, f"{name} [{weight.shape[0]}, {weight.shape[1]}]"


@torch.no_grad()
def _shapes(student: Student, sample: Sample) -> tuple[bool, str]:
    hidden, router_logits = student(sample.input_ids, sample.position_ids, sample.cu_seqlens)
    num_tokens, width = sample.input_ids.shape[1], student.lm_head.weight.shape[1]
    shapes = [tuple(logits.shape) for logits in router_logits]
    right = tuple(hidden.shape) == (num_tokens, width)
    right &= all(len(shape) == 2 and shape[0] == num_tokens for shape in shapes)
    right &= all(1 <= student.experts_per_token <= shape[1] for shape in shapes)
    found = f"hidden {tuple(hidden.shape)}, {len(shapes)} router logits"
    if shapes:
        found += f" of {', '.join(map(str, sorted(set(shapes))))}, {student.experts_per_token} experts a token"
    return right, found + f"; wanted ({num_tokens}, {width}) and ({num_tokens}, experts)"


@torch.no_grad()
def _packed(student: Student, sample: Sample, tolerance: float) -> tuple[bool, str]:
    """Largest difference of a token's loss between the pack and its separate document."""
    packed = sample.hidden(student)
    worst = 0.0
    for start, end in sample.documents:
        alone = sample.alone(start, end)
        ours = _losses(student, packed[start:end], alone)
        theirs = _losses(student, alone.hidden(student), alone)
        if not torch.isfinite(ours).all():
            raise ContractError(f"a loss of tokens {start} to {end - 1} is not finite")
        worst = max([worst, *(ours - theirs).abs().tolist()])
    return worst <= tolerance, f"losses differ by {worst:.1e} at most (bound {tolerance:.0e})"


@torch.no_grad()
def _transformers(student: Student, sample: Sample) -> tuple[bool, str]:
    """Largest difference of a token's loss from the transformers class, eager attention, one document at a time."""
    state = export_state(student, student.state_dict())
    config = copy.deepcopy(student.hf_config)
    model = student.hf_class._from_config(config, attn_implementation="eager").eval()
    model.load_state_dict(state, strict=not config.tie_word_embeddings)
    model.tie_weights()
    packed = sample.hidden(student)
    worst = 0.0
    for start, end in sample.documents:
        document = sample.alone(start, end)
        logits = model(input_ids=document.input_ids, use_cache=False).logits[0, :-1]
        theirs = cross_entropy(logits, document.input_ids[0, 1:], reduction="none")
        worst = max([worst, *(_losses(student, packed[start:end], document) - theirs).abs().tolist()])
    return worst <= TRANSFORMERS_TOLERANCE, f"losses differ by {worst:.1e} at most (bound {TRANSFORMERS_TOLERANCE:.0e})"


def _losses(student: Student, hidden: torch.Tensor, document: Sample) -> torch.Tensor:
    """−ln p of each token but the first, float32."""
    logits = hidden[:-1].float() @ student.lm_head.weight.float().T
    return cross_entropy(logits, document.input_ids[0, 1:], reduction="none")


def _gradient(student: Student, sample: Sample, supervised: int) -> tuple[bool, str]:
    """Which tokens' embeddings the first `supervised` rows of the third document depend on."""
    start, _ = sample.documents[2]
    rows = range(start, start + supervised)
    embedded, hidden = _followed(student, sample)
    # Any direction will do that is not the head's own, in which some students' gradients vanish.
    towards = torch.randn(supervised, hidden.shape[1], generator=torch.Generator().manual_seed(1))
    loss = (hidden[rows.start : rows.stop] * towards).sum()
    found = torch.autograd.grad(loss, embedded, allow_unused=True)
    sizes = sum(gradient.flatten(0, -2).abs().sum(dim=1) for gradient in found if gradient is not None)
    reached = torch.as_tensor(sizes).expand(sample.input_ids.shape[1]).nonzero()[:, 0].tolist()
    outside = [token for token in reached if token not in rows]
    where = f"rows {rows.start} to {rows.stop - 1} reach"
    if outside:
        return False, f"{where} {len(outside)} other tokens, {outside[0]} among them"
    return len(reached) == supervised, f"{where} {len(reached)} of their {supervised} tokens and no other"


def _followed(student: Student, sample: Sample) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Outputs of the embeddings that take input_ids, and the hidden states that hang on them."""
    embedded: list[torch.Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if inputs and torch.equal(inputs[0].flatten(), sample.input_ids[0]):
            # A frozen embedding (adapters) has no gradient of its own.
            output = output if output.requires_grad else output.detach().requires_grad_()
            embedded.append(output)
        return output

    hooks = [module.register_forward_hook(keep) for module in student.modules() if isinstance(module, nn.Embedding)]
    try:
        hidden = sample.hidden(student)
    finally:
        for hook in hooks:
            hook.remove()
    if not embedded:
        raise ContractError("input_ids must go through an nn.Embedding, by which gradients are followed")
    return embedded, hidden


@torch.no_grad()
def _empty_documents(student: Student, sample: Sample) -> tuple[bool, str]:
    """cu_seqlens padded with repeated T, as the collator does to keep its length."""
    padded = Sample(
        sample.input_ids, sample.position_ids, torch.cat([sample.cu_seqlens, sample.cu_seqlens[-1:].expand(5)])
    )
    difference = float((padded.hidden(student) - sample.hidden(student)).abs().max())
    return difference == 0, f"5 of them change hidden states by {difference:g}"


def report(findings: list[Finding]) -> Table:
    """The findings for a terminal."""
    table = Table("check", "", "found")
    for finding in findings:
        table.add_row(finding.name, Text("pass", "green") if finding.passed else Text("FAIL", "red"), finding.measured)
    return table
