import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from tests.training.models.toys import visible
from training.models import attention
from training.models.attention import Packing

# The compiler that flex_attention imports uses deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:flex_attention called without:UserWarning"
)

BOUNDS = [0, 1, 38, 200, 384, 384]
WINDOWS = [None, 1, 5, 128, 200]
SCALING = 0.3


@pytest.fixture(autouse=True)
def small_query_blocks(monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 7)


def tensors(num_tokens, heads=4, kv_heads=2, head_dim=8, dtype=torch.float32):
    """Query, key, value and sinks."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, count, num_tokens, head_dim) for count in (heads, kv_heads, kv_heads)] + [(heads,)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def dense(query, key, value, sinks, seen):
    """Softmax over all keys that are seen and, where there are sinks, one more column."""
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * SCALING
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[None, :, None, None].expand(1, -1, len(seen), 1)], dim=3)
    return scores.softmax(dim=3)[..., : len(seen)] @ value.repeat_interleave(groups, 1)


def block_mask_of(bounds, window):
    return attention.block_mask(attention.first_visible(torch.tensor(bounds, dtype=torch.int32), bounds[-1], window))


def blocks(mask):
    """bool [2, rows, rows]: blocks that are attended under the mask, and blocks that need none."""
    rows = mask.kv_indices.shape[2]
    found = torch.zeros(2, rows, rows, dtype=torch.bool)
    listed = ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices))
    for kind, (counts, indices) in enumerate(listed):
        for row in range(rows):
            found[kind, row, indices[0, 0, row, : counts[0, 0, row]].long()] = True
    return found


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("with_sinks", [False, True])
def test_attention_by_document_equals_dense_attention(window, with_sinks):
    query, key, value, sinks = tensors(BOUNDS[-1])
    used = [query, key, value, sinks] if with_sinks else [query, key, value]
    packing = Packing.of(torch.tensor(BOUNDS, dtype=torch.int32), BOUNDS[-1], {None, window})
    ours, _ = attention.packed_attention(
        torch.nn.Module(), query, key, value, None, packing=packing, scaling=SCALING, sliding_window=window,
        s_aux=sinks if with_sinks else None,
    )  # fmt: skip
    theirs = dense(query, key, value, sinks if with_sinks else None, visible(BOUNDS, window)).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
    towards = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    for mine, other in zip(
        torch.autograd.grad((ours * towards).sum(), used),
        torch.autograd.grad((theirs * towards).sum(), used),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=2e-5)


def test_bfloat16_attention_keeps_its_type_and_is_near_the_dense_one():
    query, key, value, sinks = tensors(BOUNDS[-1], dtype=torch.bfloat16)
    packing = Packing.of(torch.tensor(BOUNDS, dtype=torch.int32), BOUNDS[-1], {None})
    ours = attention.by_document(query, key, value, sinks, packing, 128, SCALING)
    theirs = dense(*(tensor.float() for tensor in (query, key, value, sinks)), visible(BOUNDS, 128))
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - theirs).abs().max() < 2e-2


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("bounds", [BOUNDS, [0, 0, 130, 300], [0, 256], [0, 129, 385, 513, 513]])
def test_the_mask_function_and_its_blocks_equal_the_definition_and_torchs_own(bounds, window):
    num_tokens = bounds[-1]
    first = attention.first_visible(torch.tensor(bounds, dtype=torch.int32), num_tokens, window)
    seen = create_mask(attention.mask_mod(first), 1, 1, num_tokens, num_tokens, device="cpu")[0, 0]
    assert torch.equal(seen, visible(bounds, window))
    mask = attention.block_mask(first)
    theirs = create_block_mask(attention.mask_mod(first), 1, 1, num_tokens, num_tokens, device="cpu")
    assert mask.seq_lengths == theirs.seq_lengths
    assert torch.equal(blocks(mask), blocks(theirs))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=6).filter(any), st.none() | st.integers(1, 400))
def test_blocks_cover_what_is_seen_and_full_blocks_nothing_else(lengths, window):
    bounds = torch.tensor([0, *lengths]).cumsum(0).tolist()
    attended, full = blocks(block_mask_of(bounds, window))
    rows, size = len(attended), attention.MASK_BLOCK
    padded = torch.nn.functional.pad(visible(bounds, window), (0, rows * size - bounds[-1]) * 2)
    seen = padded.reshape(rows, size, rows, size)
    assert torch.equal(attended | full, seen.any(dim=3).any(dim=1))
    # The last rows of a pack that does not fill its last block are no queries at all.
    last = bounds[-1] - (rows - 1) * size
    for row in range(rows):
        queries = seen[row, : size if row < rows - 1 else last]
        assert torch.equal(full[row], queries.all(dim=2).all(dim=0))


def test_block_masks_have_one_shape_whatever_the_documents():
    shapes = {
        tuple(tensor.shape for tensor in (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_indices, mask.q_indices))
        for bounds in (BOUNDS, [0, 384], [0, *range(1, 385)])
        for mask in [block_mask_of(bounds, 128)]
    }
    assert shapes == {((1, 1, 3), (1, 1, 3, 3), (1, 1, 3, 3), (1, 1, 3, 3))}


def test_scaling_by_log_sum_exp_equals_a_column_for_the_sink():
    query, key, value, sinks = tensors(64, kv_heads=4)
    seen = visible([0, 20, 64], 9)
    scores = (query @ key.transpose(2, 3) * SCALING).masked_fill(~seen, -torch.inf)
    ours = attention.scaled_by_sinks(scores.softmax(dim=3) @ value, scores.logsumexp(dim=3), sinks)
    theirs = dense(query, key, value, sinks, seen)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    inputs = [query, key, value, sinks]
    for mine, other in zip(
        torch.autograd.grad(ours.square().sum(), inputs),
        torch.autograd.grad(theirs.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=2e-5)


@pytest.fixture
def flex_on_cpu(monkeypatch):
    """What a GPU runs, by torch's own dense reference of flex_attention, which only a check keeps from a CPU."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(attention, "_compiled_flex", lambda: torch_flex.flex_attention)


@pytest.mark.parametrize("window", [None, 5, 128])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.usefixtures("flex_on_cpu")
def test_the_gpus_way_equals_dense_attention(window, with_sinks):
    query, key, value, sinks = tensors(BOUNDS[-1])
    used = [query, key, value, sinks] if with_sinks else [query, key, value]
    sinks = sinks if with_sinks else None
    ours = attention.flex(query, key, value, sinks, block_mask_of(BOUNDS, window), SCALING)
    theirs = dense(query, key, value, sinks, visible(BOUNDS, window))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
    for mine, other in zip(
        torch.autograd.grad(ours.square().sum(), used), torch.autograd.grad(theirs.square().sum(), used), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=5e-5)


@pytest.mark.usefixtures("flex_on_cpu")
def test_a_graph_of_the_gpus_way_serves_every_pack():
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(attention.flex, backend="eager", dynamic=False)
    query, key, value, sinks = tensors(384)
    for bounds in (BOUNDS, [0, 384], [0, 100, 101, 200, 300, 384], [0, *range(1, 385)]):
        mask = block_mask_of(bounds, 128)
        ours = compiled(query, key, value, sinks, mask, SCALING)
        torch.testing.assert_close(ours, dense(query, key, value, sinks, visible(bounds, 128)), rtol=1e-5, atol=2e-6)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_packing_on_a_cpu_leaves_out_documents_without_tokens():
    packing = Packing.of(torch.tensor([0, 0, 3, 5, 5, 5], dtype=torch.int32), 5, {None})
    assert packing.documents == ((0, 3), (3, 5))
