"""The LM head without tokens x vocabulary in memory: logits are computed, used and overwritten in chunks of rows.

`LmHead(hidden, row_loss)` is called inside the engine's forward on supervised rows only; it holds the student's own
Parameter (tied or not), so ZeRO-3 gathers that weight around the whole of it. What is made of logits is a RowLoss's
business; chunks, matrix products, gradients and memory are this module's:

- Where a row's coefficient is known (every loss over tokens), the chunk's logits are turned in place into their
  gradient and multiplied out at once; the backward pass only scales the result. That is one product of V x H a row for
  the values and two for the gradients, as many as without chunks, or one for the gradients where the weight is frozen.
- Where it depends on all rows (preference losses), the rows' values are returned differentiable and the logits are
  made once more in the backward pass.

Sums over rows and the vocabulary are float32 at least, whatever the parameters' type: narrow operands go into products
that accumulate and return float32 on CUDA, and are widened a tile of the vocabulary at a time on CPU, where there is no
such product. Memory over the inputs: `logits_bytes` for all buffers of logits together (512 MiB), 128 MiB for tiles,
and the gradient of the weight, V x H float32 - flat in the number of tokens. At V = 201,088, H = 256, bf16, 8,192 rows
cross-entropy took 0.87 GiB and 4.5 ms of one CPU core a row (tests/benchmarks/bench_head.py).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable

LOGITS_BYTES = 512 * 2**20
"""All buffers of logits of a call together."""

TILE_BYTES = 128 * 2**20
"""A part of a narrow weight, or of its gradient, in float32: what exists beside the buffers."""


class RowLosses(NamedTuple):
    """What a RowLoss finds in n rows: total = sum of weights * values, d total / d logits = buffer * scales."""

    values: torch.Tensor
    """[n]"""
    weights: torch.Tensor
    """[n], not differentiated."""
    scales: torch.Tensor
    """[n]"""


class RowLoss(Protocol):
    """A loss of single rows of logits; a dataclass."""

    @property
    def coefficients(self) -> torch.Tensor | None:
        """[S], what each row's value counts; None where that is not known before every row has been seen."""

    @property
    def num_buffers(self) -> int:
        """Buffers of rows x vocabulary that it needs; the first comes filled with the student's logits."""

    @property
    def vocab_size(self) -> int | None:
        """Ids that are compared, the first of the vocabulary; None for all rows of the weight."""

    def __call__(self, buffers: Sequence[torch.Tensor], rows: slice) -> RowLosses:
        """The values of some rows; leaves in the first buffer [n, V] their gradient up to `scales`."""


class LmHead(nn.Module):
    """The output projection; `forward` gives losses, not logits."""

    def __init__(self, weight: nn.Parameter, logits_bytes: int = LOGITS_BYTES) -> None:
        """`weight` [V, H] is shared with the model that names it; there is no bias."""
        super().__init__()
        self.weight = weight
        self.logits_bytes = logits_bytes

    def forward(self, hidden: torch.Tensor, row_loss: RowLoss) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of hidden states [S, H], S >= 0, float32 or float64 where the weight is.

        Returns:
            With coefficients: the scalar sum of coefficient times value, differentiable in hidden and weight, and the
            values [S], which are not. Without: the plain sum of the values, and the values, both differentiable.
        """
        if row_loss.coefficients is None:
            values = cast(torch.Tensor, _recomputed(hidden, self.weight, row_loss, self.logits_bytes))
            return values.sum(), values
        return cast("tuple[torch.Tensor, torch.Tensor]", _fused(hidden, self.weight, row_loss, self.logits_bytes))


class _Fused(torch.autograd.Function):
    """Gradients made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, row_loss: RowLoss, logits_bytes: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = _sweep(hidden, weight, row_loss, logits_bytes, ctx.needs_input_grad[:2])
        ctx.gradients = [found.grad_hidden, _joined(found.grad_weight, weight)]
        ctx.mark_non_differentiable(found.values)
        return found.total, found.values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Scaled where they lie, so that there is never a second copy; that is right only once.
        grad_hidden, grad_weight = ctx.gradients
        del ctx.gradients
        for gradient in (grad_hidden, grad_weight):
            if gradient is not None:
                gradient *= grad_total
        return grad_hidden, grad_weight, None, None


class _Recomputed(torch.autograd.Function):
    """Logits made again in the backward pass, when the coefficients are known: they are the values' gradients."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, row_loss: RowLoss, logits_bytes: int
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.row_loss, ctx.logits_bytes = row_loss, logits_bytes
        return _sweep(hidden, weight, row_loss, logits_bytes, (False, False)).values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        row_loss = replace(ctx.row_loss, coefficients=grad_values)
        found = _sweep(hidden, weight, row_loss, ctx.logits_bytes, ctx.needs_input_grad[:2])
        return found.grad_hidden, _joined(found.grad_weight, weight), None, None


_fused: Callable[..., Any] = _Fused.apply
_recomputed: Callable[..., Any] = _Recomputed.apply


class _Swept(NamedTuple):
    total: torch.Tensor
    values: torch.Tensor
    grad_hidden: torch.Tensor | None
    grad_weight: list[torch.Tensor]
    """float32 at least, in tiles of the vocabulary; empty where it is not needed."""


def _sweep(
    hidden: torch.Tensor, weight: torch.Tensor, row_loss: RowLoss, logits_bytes: int, needed: Sequence[bool]
) -> _Swept:
    """All rows, a chunk at a time, with the gradients of hidden and weight that are needed."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    num_rows, vocab_size = len(hidden), row_loss.vocab_size or len(weight)
    used = weight.detach()[:vocab_size]
    chunk = min(_chunk_rows(row_loss.num_buffers * vocab_size * wide.itemsize, logits_bytes), num_rows)
    buffers = [hidden.new_empty(chunk, vocab_size, dtype=wide) for _ in range(row_loss.num_buffers)]
    values, weights = hidden.new_empty(2, num_rows, dtype=wide)
    grad_hidden = torch.empty_like(hidden) if needed[0] else None
    grad_weight = [torch.zeros_like(weight[tile], dtype=wide) for tile in _tiles(weight, wide)] if needed[1] else []
    for start in range(0, num_rows, max(chunk, 1)):
        rows = slice(start, min(start + chunk, num_rows))
        here = [buffer[: rows.stop - start] for buffer in buffers]
        states = hidden.detach()[rows]
        project(states, used, here[0])
        values[rows], weights[rows], scales = row_loss(here, rows)
        if any(needed):
            scaled = states.to(wide) * scales[:, None]
            grad_states = torch.zeros_like(scaled)
            _multiply_out(here[0], used, scaled, grad_states if needed[0] else None, grad_weight)
            if grad_hidden is not None:
                grad_hidden[rows] = grad_states.mul_(scales[:, None])
    return _Swept((values * weights).sum(), values, grad_hidden, grad_weight)


def _chunk_rows(bytes_per_row: int, logits_bytes: int) -> int:
    """Number of rows whose logits exist at a time: as many as fit, in multiples of 64 if possible."""
    fitting = max(logits_bytes // bytes_per_row, 1)
    return fitting if fitting < 64 else fitting // 64 * 64


def project(hidden: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """Write hidden @ weight.T, [n, H] and [V, H], to `out` [n, V] of a type that is at least float32."""
    states = _operand(hidden, weight, out.dtype)
    for tile in _tiles(weight, out.dtype):
        part = _operand(weight[tile], weight, out.dtype)
        if part.dtype == out.dtype:
            torch.mm(states, part.T, out=out[:, tile])
        else:
            torch.mm(states, part.T, out_dtype=out.dtype, out=out[:, tile])


def _multiply_out(
    gradient: torch.Tensor,
    weight: torch.Tensor,
    scaled: torch.Tensor,
    grad_states: torch.Tensor | None,
    grad_weight: Sequence[torch.Tensor],
) -> None:
    """Add gradient [n, V] times weight to `grad_states` [n, H], and its transpose times `scaled` to the tiles."""
    states = _operand(scaled, weight, gradient.dtype)
    for number, tile in enumerate(_tiles(weight, gradient.dtype)):
        part = _operand(gradient[:, tile], weight, gradient.dtype)
        if grad_states is not None:
            _add_product(grad_states, part, _operand(weight[tile], weight, gradient.dtype))
        if grad_weight:
            _add_product(grad_weight[number][: tile.stop - tile.start], part.T, states)


def _joined(tiles: list[torch.Tensor], weight: torch.Tensor) -> torch.Tensor | None:
    """The gradient in the weight's own type; the tiles are taken away one by one, so there are never two whole ones."""
    if not tiles or weight.dtype == tiles[0].dtype:
        return tiles.pop() if tiles else None
    joined = torch.empty_like(weight)
    for rows in list(_tiles(weight, tiles[0].dtype)):
        joined[rows] = tiles.pop(0)
    return joined


def _add_product(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if left.dtype == out.dtype:
        out.addmm_(left, right)
    else:
        out += torch.mm(left, right, out_dtype=out.dtype)


def _operand(values: torch.Tensor, weight: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    """What goes into a product: the weight's own type on CUDA, which then returns `wide`; `wide` elsewhere."""
    return values.to(weight.dtype if weight.is_cuda else wide)


def _tiles(weight: torch.Tensor, wide: torch.dtype) -> Iterator[slice]:
    """The vocabulary in parts, one if nothing is widened."""
    vocab_size, hidden_size = weight.shape
    size = vocab_size if weight.dtype == wide else max(TILE_BYTES // (hidden_size * wide.itemsize), 1)
    for start in range(0, vocab_size, size):
        yield slice(start, min(start + size, vocab_size))
