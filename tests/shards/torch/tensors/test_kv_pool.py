"""Keys and values as tensors, over the memory of ``layers.kv_pool``."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.shards.formats.blocks.attention import KvShape
from swarm_node.shards.layers.kv_pool import KV_DTYPES
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.torch.span import TorchSpan
from swarm_node.shards.torch.tensors.kv_pool import TorchKvPart, TorchKvPool, quantize_int8
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.types import Span
from tests.shards.models.block_cases import checkpoint_of
from tests.shards.models.state_cases import STATES
from tests.shards.torch.kv_cases import soil

CPU = torch.device("cpu")
TOLERANCE = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11, "int8": 0.5001 / 127}
"""Largest error of a stored value, relative to itself (int8: to the largest of its row)."""


def pool_of(n_slots: int, shape: KvShape, kv_dtype: str) -> tuple[TorchKvPool, TorchKvPart]:
    pool = TorchKvPool(n_slots, (shape,), kv_dtype, CPU)
    return pool, pool.part(shape)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KV_DTYPES), st.integers(1, 3), st.integers(1, 20), st.integers(0, 10**6), st.data())
def test_what_is_stored_is_gathered(
    kv_dtype: str, kv_heads: int, head_dim: int, seed: int, data: st.DataObject
) -> None:
    """Tokens stored at any places come back in the order of the table, and nothing else has changed."""
    whole, pool = pool_of(5, KvShape(kv_heads, head_dim, head_dim), kv_dtype)
    soil(pool.held)
    untouched = whole.data.clone()
    table = data.draw(st.permutations(range(5)))[:3]
    count = data.draw(st.integers(1, 3 * PAGE_TOKENS))
    positions = torch.tensor(data.draw(st.permutations(range(3 * PAGE_TOKENS)))[:count])
    torch.manual_seed(seed)
    k, v = torch.randn(count, kv_heads, head_dim), torch.randn(count, kv_heads, head_dim) * 1000
    slots = torch.tensor(table)
    pool.store(slots[positions // PAGE_TOKENS], positions % PAGE_TOKENS, k, v)
    keys, values = pool.gather(slots, torch.float32)
    assert keys.shape == values.shape == (kv_heads, 3 * PAGE_TOKENS, head_dim)
    for got, wanted in ((keys, k), (values, v)):
        rows = wanted.transpose(0, 1)  # (kv_heads, count, head_dim)
        reach = rows.abs().amax(-1, keepdim=True) if kv_dtype == "int8" else rows.abs()
        assert ((got[:, positions] - rows).abs() <= reach * TOLERANCE[kv_dtype] + 2.0**-25).all()
    for slot in set(range(5)) - set(table):
        assert torch.equal(whole.data[slot], untouched[slot])


def test_the_layout_is_as_the_kernels_read_it() -> None:
    whole, pool = pool_of(2, KvShape(2, 4, 4), "float32")
    k, v = torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    pool.store(torch.tensor([1]), torch.tensor([5]), k, v)
    flat = whole.data[1].view(torch.float32).view(2, 2, -1)  # keys and values, KV heads
    for head in range(2):
        assert flat[0, head].view(4, PAGE_TOKENS)[:, 5].tolist() == k[0, head].tolist()
        assert flat[1, head].view(PAGE_TOKENS, 4)[5].tolist() == v[0, head].tolist()


def test_float16_saturates_and_keeps_what_is_not_a_number() -> None:
    _, pool = pool_of(1, KvShape(1, 4, 4), "float16")
    x = torch.tensor([[[70000.0, -1e30, float("inf"), float("nan")]]])
    pool.store(torch.tensor([0]), torch.tensor([0]), x, x)
    for part in pool.gather(torch.tensor([0]), torch.float32):
        assert part[0, 0, :3].tolist() == [65504.0, -65504.0, 65504.0]
        assert part[0, 0, 3].isnan()


def test_int8_rounds_half_to_even_with_a_scale_a_row() -> None:
    q, scale = quantize_int8(torch.tensor([[127.0, 2.5, -3.5, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert q.tolist() == [[127, 2, -4, 0], [0, 0, 0, 0]]
    assert scale[0] == 1.0
    assert 0 < scale[1] < 1e-30


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_int8_row_that_is_not_finite_never_reads_as_finite(bad: float) -> None:
    _, pool = pool_of(1, KvShape(1, 4, 4), "int8")
    x = torch.tensor([[[1.0, bad, 2.0, 3.0]]])
    pool.store(torch.tensor([0]), torch.tensor([0]), x, x)
    for part in pool.gather(torch.tensor([0]), torch.float32):
        assert not part[0, 0].isfinite().any()


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_copies_are_whole_and_leave_the_rest(kv_dtype: str) -> None:
    torch.manual_seed(0)
    whole, pool = pool_of(6, KvShape(2, 8, 8), kv_dtype)
    slots, offsets = torch.arange(6).repeat_interleave(PAGE_TOKENS), torch.arange(PAGE_TOKENS).repeat(6)
    pool.store(slots, offsets, torch.randn(192, 2, 8), torch.randn(192, 2, 8))
    before = [pool.gather(torch.tensor([slot]), torch.float32) for slot in range(6)]
    whole.copy_slots([4, 0, 4], [1, 2, 5])
    for slot, source in enumerate([0, 4, 0, 3, 4, 4]):
        for got, wanted in zip(pool.gather(torch.tensor([slot]), torch.float32), before[source], strict=True):
            assert torch.equal(got, wanted)
    with pytest.raises(ValueError, match="2 sources"):
        whole.copy_slots([1, 2], [3])
    whole.copy_slots([], [])


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_shared_values_are_the_first_of_the_keys(kv_dtype: str) -> None:
    _, pool = pool_of(1, KvShape(1, 6, 4, shared=True), kv_dtype)
    k, at = torch.randn(PAGE_TOKENS, 1, 6), torch.arange(PAGE_TOKENS)
    pool.store(torch.zeros_like(at), at, k, k[..., :0])
    keys, values = pool.gather(torch.tensor([0]), torch.float32)
    assert keys.shape == (1, PAGE_TOKENS, 6)
    assert torch.equal(values, keys[..., :4])


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_index_keys_lie_behind_keys_and_values(kv_dtype: str) -> None:
    """Neither overwrites the other, and a copied slot has both."""
    shape = KvShape(1, 12, 8, shared=True, index_dim=6)
    whole = TorchKvPool(3, (shape, KvShape(2, 5, 5)), kv_dtype, CPU)
    index, part = whole.index(shape), whole.part(shape)
    slots, offsets = torch.tensor([1, 1]), torch.tensor([0, 31])
    k, key = torch.randn(2, 1, 12), torch.randn(2, 1, 6)
    index.store(slots, offsets, key, key)
    part.store(slots, offsets, k, k)
    before = index.tokens(slots, offsets, torch.float32)[0], part.tokens(slots, offsets, torch.float32)[0]
    whole.copy_slots([1], [2])
    for held, wanted, kept in ((index, key, before[0]), (part, k, before[1])):
        tolerance = TOLERANCE[kv_dtype] * wanted.abs().max().item()
        torch.testing.assert_close(kept, wanted.permute(1, 2, 0), atol=tolerance, rtol=0)
        assert torch.equal(held.tokens(slots + 1, offsets, torch.float32)[0], kept)


def test_slots_on_another_device_take_nothing_of_the_hosts_memory() -> None:
    """Here more than a host can address."""
    options = LoadOptions(dtype="float32", quantize="none", kernels="torch")
    model = load_backend(checkpoint_of(STATES["delta"]), Span(0, 2), options)
    assert isinstance(model, TorchSpan)
    model.target = replace(model.target, device=torch.device("meta"))
    pool = model.new_pool(1 << 46, "float32", 1 << 46)
    assert pool.n_states == len(pool.states) == len(pool.data) == 1 << 46
