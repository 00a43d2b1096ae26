"""Memory for kernels."""

from __future__ import annotations

import mmap
import subprocess
import sys

import numpy as np
import psutil
import pytest

from swarm_node.shards.layers.memory import zeros

LASTING = """
import psutil
from swarm_node.shards.layers.memory import CHUNK_BYTES, lasting_zeros

process = psutil.Process()
before = process.memory_info().rss
sizes = 5, CHUNK_BYTES // 2, CHUNK_BYTES // 2 - 64, 100, 2 * CHUNK_BYTES
held = [lasting_zeros(nbytes) for nbytes in sizes]
assert [len(array) for array in held][-2:] == [100, 2 * CHUNK_BYTES]
assert not any(array.any() or array.ctypes.data % 64 for array in held)
for number, array in enumerate(held):
    array[...] = number + 1
assert all((array == number + 1).all() for number, array in enumerate(held))
assert held[2].ctypes.data - held[0].ctypes.data == 64 + CHUNK_BYTES // 2
assert process.memory_info().rss - before > 3 * CHUNK_BYTES
del array
held = held[3:4]
grown = process.memory_info().rss - before
assert grown < 2 * CHUNK_BYTES, grown
"""


@pytest.mark.parametrize("shape", [1, (3, 5), (0,), (7, 0, 2), (1000, 33)])
def test_zeros_that_may_be_written(shape: int | tuple[int, ...]) -> None:
    array = zeros(shape, np.float32)
    assert array.shape == np.zeros(shape).shape
    assert not array.any()
    assert array.flags.c_contiguous
    assert not array.nbytes or array.ctypes.data % mmap.PAGESIZE == 0
    array[...] = 1
    assert (array == 1).all()


def test_what_is_not_written_is_not_taken_and_goes_with_the_array() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    array = zeros((1 << 30,), np.uint8)
    assert process.memory_info().rss - before < 64 << 20
    array[: 128 << 20] = 1
    assert process.memory_info().rss - before > 100 << 20
    del array
    assert process.memory_info().rss - before < 64 << 20


def test_more_than_can_be() -> None:
    for size in (1 << 50, 1 << 70):
        with pytest.raises(MemoryError):
            zeros(size, np.uint8)


def test_lasting_zeros_lie_together_and_go_together() -> None:
    """In a process by itself: here, others' allocations would be measured, too, and their threads may hold
    what this test has let go of."""
    subprocess.run([sys.executable, "-c", LASTING], check=True, timeout=120)
