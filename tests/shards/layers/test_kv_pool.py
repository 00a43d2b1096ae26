from __future__ import annotations

import numpy as np
import pytest

from swarm_node.shards.formats.block_config import KvShape
from swarm_node.shards.layers.kv_pool import KV_DTYPES, KvPool, resolve_kv_dtype, slot_bytes
from swarm_node.swarm.errors import UsageError


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_slot_bytes_is_what_the_arrays_take(kv_dtype: str) -> None:
    pool = KvPool(7, KvShape(3, 24, 24), kv_dtype)
    scales = 0 if pool.scales is None else pool.scales.nbytes
    assert pool.data.nbytes + scales == 7 * pool.slot_bytes == 7 * slot_bytes(KvShape(3, 24, 24), kv_dtype)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_copies_are_whole_and_leave_the_rest(kv_dtype: str) -> None:
    random = np.random.default_rng(0)
    pool = KvPool(6, KvShape(2, 8, 8), kv_dtype)
    arrays = [pool.data] if pool.scales is None else [pool.data, pool.scales]
    for array in arrays:
        array[:] = random.integers(-100, 100, array.shape).astype(array.dtype)
    before = [array.copy() for array in arrays]
    pool.copy_slots([4, 0, 4], [1, 2, 5])
    for array, was in zip(arrays, before, strict=True):
        assert np.array_equal(array, was[[0, 4, 0, 3, 4, 4]])
    with pytest.raises(ValueError, match="2 sources"):
        pool.copy_slots([1, 2], [3])
    pool.copy_slots([], [])


def test_more_than_there_is() -> None:
    with pytest.raises(MemoryError):
        KvPool(1 << 40, KvShape(8, 128, 128), "float32")


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
