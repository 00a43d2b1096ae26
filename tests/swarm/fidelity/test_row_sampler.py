"""Which rows are kept: every 64th, of coarse codecs, and no more than there is room for."""

from __future__ import annotations

import numpy as np
import pytest

from swarm_node.swarm.codecs.codec import Codec
from swarm_node.swarm.codecs.kinds import BF16, F8
from swarm_node.swarm.fidelity.row_sampler import (
    EVERY,
    MOST_BYTES,
    MOST_OF_A_SESSION,
    MOST_SAMPLES,
    RowSampler,
)

WIDTH = 32


def payload(codec: Codec, rows: int) -> bytes:
    values = np.arange(rows, dtype=np.float32)[:, None] * np.ones(WIDTH, np.float32)
    return bytes(codec.encode(values))


@pytest.mark.parametrize(
    ("position", "tokens", "expected"),
    [(0, 1, [0]), (1, 1, []), (EVERY, 1, [0]), (0, 200, [0, 64, 128, 192]), (100, 64, [28]), (65, 63, [])],
)
def test_every_64th_position_is_kept(position: int, tokens: int, expected: list[int]) -> None:
    sampler = RowSampler(WIDTH, learning=False)
    whole, size = payload(F8, tokens), F8.row_bytes(WIDTH)
    sampler.took(F8, memoryview(whole), position, tokens, "group", "peer")
    rows, _ = sampler.take()
    assert [row.payload for row in rows] == [whole[at * size : (at + 1) * size] for at in expected]
    assert {(row.group, row.peer) for row in rows} <= {("group", "peer")}
    assert sampler.take() == ([], [])


def test_fine_codecs_are_not_looked_at() -> None:
    sampler = RowSampler(WIDTH, learning=False)
    sampler.took(BF16, payload(BF16, 64), 0, 64, "group", "peer")
    assert sampler.take() == ([], [])


def test_what_is_kept_is_bounded() -> None:
    sampler = RowSampler(WIDTH, learning=True)
    row, values = payload(F8, 1), np.ones((16, WIDTH), np.float32)
    for _ in range(2 * MOST_SAMPLES):
        sampler.took(F8, row, 0, 1, "group", "peer")
        sampler.learn(values, 0, "group")
    rows, sizes = sampler.take()
    assert len(rows) == MOST_SAMPLES
    assert len(sizes) == MOST_SAMPLES
    wide = RowSampler(65536, learning=False)
    assert (wide._rows.maxlen or 0) * 65536 <= MOST_BYTES
    assert (wide._sizes.maxlen or 0) * 8 * 65536 <= MOST_BYTES


def test_a_session_is_learned_from_up_to_a_bound() -> None:
    sampler = RowSampler(WIDTH, learning=True)
    values = np.ones((300, WIDTH), np.float32)
    known = sampler.learn(values[:1], 0, "group")
    assert known == 0  # a decode step
    known = sampler.learn(values, known, "group")
    known = sampler.learn(values, known, "group")
    assert sampler.learn(values, known, "group") == known == MOST_OF_A_SESSION
    _, sizes = sampler.take()
    assert [each.rows for each in sizes] == [300, MOST_OF_A_SESSION - 300]
    sampler.learning = False
    assert sampler.learn(values, 0, "group") == 0
