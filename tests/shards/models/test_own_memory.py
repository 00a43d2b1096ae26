"""A session without an engine: it goes back, and computes on as if it had never been further."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.swarm.types import Span
from tests.shards.models.block_cases import HIDDEN, block, checkpoint_of
from tests.shards.models.state_cases import delta, kept

TOKENS = 160


@pytest.fixture(scope="module")
def model() -> SpanBackend:
    blocks = [block(), kept(delta())]
    options = LoadOptions(dtype="float32", deterministic=True)
    return load_backend(checkpoint_of(blocks), Span(0, len(blocks)), options, threads=1)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((TOKENS, HIDDEN), np.float32)


@pytest.fixture(scope="module")
def expected(model: SpanBackend, rows: np.ndarray) -> np.ndarray:
    memory = OwnMemory(model, "float32", TOKENS)
    return model.forward(rows, [memory.slice(0, TOKENS)], memory.pool)


@given(
    states=st.integers(1, 4),
    steps=st.lists(st.tuples(st.integers(0, TOKENS - 1), st.integers(1, 70)), min_size=1, max_size=8),
)
def test_whatever_it_was_fed_before_a_session_goes_on_from_any_position(
    model: SpanBackend, rows: np.ndarray, expected: np.ndarray, states: int, steps: list[tuple[int, int]]
) -> None:
    memory, held = OwnMemory(model, "float32", TOKENS, states=states), 0
    for position, count in steps:
        position = min(position, held)
        start, held = memory.start(position), min(position + count, TOKENS)
        assert start == position or start == position // 32 * 32 or start == 0
        out = model.forward(rows[start:held], [memory.slice(start, held - start)], memory.pool)
        np.testing.assert_array_equal(out, expected[start:held])


def test_the_last_pages_borders_are_held(model: SpanBackend) -> None:
    memory = OwnMemory(model, "float32", TOKENS, states=3)
    memory.slice(0, 140)
    assert [memory.start(position) for position in (140, 139, 128, 127, 96, 95)] == [140, 128, 128, 96, 96, 0]


def test_shared_slots_are_one_blocks_and_repeat_what_they_hold(model: SpanBackend, rows: np.ndarray) -> None:
    memory = OwnMemory(model, "float32", TOKENS, shared=True)
    pages = TOKENS // 32
    assert memory.pool.n_slots == pages
    model.forward(rows[:64], [memory.slice(0, 64)], memory.pool)
    memory.repeat(2)
    data = memory.pool.data
    data = data.numpy() if hasattr(data, "numpy") else data
    for page in range(pages):
        np.testing.assert_array_equal(data[page], data[page % 2])
    assert len(set(map(bytes, data))) == 2
