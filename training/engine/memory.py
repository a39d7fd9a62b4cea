"""Predicts the memory of a rank: what each ZeRO stage keeps, and what one pack adds.

The states are counted exactly, byte for byte, as DeepSpeed 0.19 lays them out (Rajbhandari et al. 2020, ZeRO, section
3, for the idea; the float32 sums of bf16 gradients are ours): float32 masters and moments are 12 bytes a parameter,
split over the ranks from ZeRO stage 1 on; gradients are split from 2 on, parameters from 3 on. Activations are
an estimate: what a decoder layer keeps for its backward pass, without the T x T scores that packed attention never
keeps (Korthikanti et al. 2022, section 4.1, counts the same tensors), good to a factor of about 1.5. The CUDA context,
the allocator's fragments and libraries' workspaces (1 to 3 GiB on a GPU) are not counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from pydantic import Field

from etl.config import Config

MASTER_BYTES = 4
MOMENT_BYTES = 8
GRADIENT_SUM_BYTES = 4

REDUCE_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's default of zero_optimization.reduce_bucket_size."""
LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's default of zero_optimization.stage3_max_live_parameters."""
HEAD_BYTES = 640 * 2**20
"""Buffers of the chunked head: 512 MiB of logits and 128 MiB of tiles."""


class StudentSize(Config):
    """What of a student decides its memory."""

    parameters: int = Field(ge=1)
    """Trainable parameters, embeddings included."""
    hidden: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    mlp_width: int = Field(ge=1)
    """Inner width of the MLP; of all experts that a token goes to together."""
    vocab: int = Field(ge=2)


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    parameters: int
    gradients: int
    optimizer: int
    """Masters and moments."""
    buffers: int
    """Buckets of the reduction, and at ZeRO stage 3 the parameters that are gathered at a time."""
    activations: int
    head: int
    """Logits of a chunk and the float32 gradient of the head's weight."""

    @property
    def total(self) -> int:
        """All of it at its peak, in the backward pass."""
        return sum(getattr(self, field.name) for field in fields(self))


def memory(
    size: StudentSize, zero_stage: int, world_size: int, pack_tokens: int, *, bf16: bool, checkpointing: bool
) -> Memory:
    """What a rank needs at a ZeRO stage."""
    states = model_states(size.parameters, zero_stage, world_size, bf16=bf16)
    return Memory(
        *states,
        buffers=_buffers(size.parameters, zero_stage, bf16=bf16),
        activations=activations(size, pack_tokens, bf16=bf16, checkpointing=checkpointing),
        head=HEAD_BYTES + GRADIENT_SUM_BYTES * size.vocab * size.hidden,
    )


def by_zero_stage(
    size: StudentSize, world_size: int, pack_tokens: int, *, bf16: bool, checkpointing: bool
) -> Iterator[tuple[int, Memory]]:
    """Each ZeRO stage that the precision allows (0 is float32 only) and what a rank needs there."""
    for zero_stage in range(1 if bf16 else 0, 4):
        yield zero_stage, memory(size, zero_stage, world_size, pack_tokens, bf16=bf16, checkpointing=checkpointing)


def model_states(parameters: int, zero_stage: int, world_size: int, *, bf16: bool) -> tuple[int, int, int]:
    """Bytes of a rank's parameters, gradients, and masters with moments; the flat buffers' padding is left out."""
    width = 2 if bf16 else 4
    part = -(-parameters // world_size)
    if zero_stage == 0:
        return width * parameters, width * parameters, MOMENT_BYTES * parameters
    optimizer = (MASTER_BYTES + MOMENT_BYTES) * part
    if zero_stage == 1:
        # Every rank sums its own micro-batches; in bf16 beside the gradients that the backward pass leaves.
        summed = GRADIENT_SUM_BYTES + (width if bf16 else 0)
        return width * parameters, summed * parameters, optimizer
    held = part if zero_stage == 3 else parameters
    return width * held, GRADIENT_SUM_BYTES * part, optimizer


def _buffers(parameters: int, zero_stage: int, *, bf16: bool) -> int:
    if zero_stage == 0:
        return 0
    bucket = GRADIENT_SUM_BYTES * min(REDUCE_BUCKET_ELEMENTS, parameters)
    live = (2 if bf16 else 4) * min(LIVE_PARAMETERS, parameters) if zero_stage == 3 else 0
    return bucket + live


def activations(size: StudentSize, pack_tokens: int, *, bf16: bool, checkpointing: bool) -> int:
    """Bytes that the layers keep of a pack for the backward pass.

    With checkpointing that is the input of each layer, and all of one layer while it is computed again.
    """
    width = 2 if bf16 else 4
    layer = _kept_a_token(size)
    kept = size.layers * size.hidden + layer if checkpointing else size.layers * layer
    # Embeddings and the last norm: its input, its output and its float32 copy.
    return pack_tokens * width * (kept + 4 * size.hidden)


def _kept_a_token(size: StudentSize) -> int:
    """Elements that a layer keeps of a token: two norms (input in float32, output), projections, attention, MLP."""
    query, key_value = size.heads * size.head_dim, size.kv_heads * size.head_dim
    norms = 2 * 4 * size.hidden
    # Query and key before and after the rotary embedding, value, and the output with its copy for the projection.
    attention = 2 * query + 3 * key_value + 2 * query
    # Gate, up, the activation and the product.
    return norms + attention + 4 * size.mlp_width
