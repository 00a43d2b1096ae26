from __future__ import annotations

import numpy as np
import pytest

from swarm_node.shards.formats.blocks.attention import KvShape
from swarm_node.shards.layers.kv_pool import KV_DTYPES, KvPool, resolve_kv_dtype, slot_bytes
from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS

SHAPES = (KvShape(3, 24, 24), KvShape(2, 7, 5), KvShape(1, 40, 32, shared=True))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_a_slot_holds_the_largest_of_the_shapes(kv_dtype: str) -> None:
    for shape in SHAPES:
        pool = KvPool(7, [shape], kv_dtype)
        part = pool.part(shape)
        arrays = [part.keys, part.key_scales]
        if not shape.shared:
            arrays += [part.values, part.value_scales]
        for number, array in enumerate(arrays):
            if array is not None:
                array[:] = number + 1
        assert pool.data.nbytes == 7 * pool.slot_bytes == 7 * slot_bytes(shape, kv_dtype)
        assert sum(0 if array is None else array.nbytes for array in arrays) == pool.data.nbytes
        for number, array in enumerate(arrays):
            assert array is None or (array == number + 1).all(), "they overlap"
    mixed = KvPool(7, SHAPES, kv_dtype)
    assert mixed.slot_bytes == max(slot_bytes(shape, kv_dtype) for shape in SHAPES)
    for shape in SHAPES:
        part = mixed.part(shape)
        assert part.keys.shape == (7, shape.heads, shape.key_dim, PAGE_TOKENS)
        assert part.values.shape == (7, shape.heads, PAGE_TOKENS, shape.value_dim)
        assert np.shares_memory(part.keys, part.values) == shape.shared


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_copies_are_whole_and_leave_the_rest(kv_dtype: str) -> None:
    random = np.random.default_rng(0)
    pool = KvPool(6, SHAPES, kv_dtype)
    pool.data[:] = random.integers(0, 256, pool.data.shape)
    before = pool.data.copy()
    pool.copy_slots([4, 0, 4], [1, 2, 5])
    assert np.array_equal(pool.data, before[[0, 4, 0, 3, 4, 4]])
    with pytest.raises(ValueError, match="2 sources"):
        pool.copy_slots([1, 2], [3])
    pool.copy_slots([], [])


def test_more_than_there_is() -> None:
    with pytest.raises(MemoryError):
        KvPool(1 << 40, [KvShape(8, 128, 128)], "float32")


def test_choice_of_the_type() -> None:
    for name in KV_DTYPES:
        assert resolve_kv_dtype(name, "float32", True) == name
    assert resolve_kv_dtype("auto", "float32", True) == "float32"
    assert resolve_kv_dtype("auto", "float32", False) == "float16"
    assert resolve_kv_dtype("auto", "bfloat16", True, "cpu") == "float16"
    assert resolve_kv_dtype("auto", "bfloat16", False, "cuda") == "bfloat16"
    assert resolve_kv_dtype("auto", "float16", True, "mps") == "float16"
    for bad in ("fp16", "", "float64"):
        with pytest.raises(UsageError, match="KV dtype"):
            resolve_kv_dtype(bad, "float32", False)
