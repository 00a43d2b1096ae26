"""Which rows are kept: every 64th, of coarse codecs, and no more than there is room for."""

from __future__ import annotations

import numpy as np
import pytest

from swarm_node.swarm.codecs.codec import Codec
from swarm_node.swarm.codecs.kinds import BF16, F8
from swarm_node.swarm.fidelity.row_sampler import (
    EVERY,
    LEAST_TOGETHER,
    MOST_BYTES,
    MOST_OF_A_SESSION,
    MOST_SAMPLES,
    SHARE,
    FewAtATime,
    RowSampler,
)
from swarm_node.swarm.fidelity.scale_learner import channel_squares

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
    assert len(rows) == MOST_SAMPLES // SHARE
    assert len(sizes) == MOST_SAMPLES // SHARE
    for number in range(2 * MOST_SAMPLES):
        sampler.took(F8, row, 0, 1, f"group {number}", "peer")
        sampler.learn(values, 0, f"group {number}")
    assert tuple(map(len, sampler.take())) == (MOST_SAMPLES, MOST_SAMPLES)
    wide = RowSampler(65536, learning=True)
    row, values = bytes(F8.row_bytes(65536)), np.ones((8, 65536), np.float32)
    for number in range(100):
        wide.took(F8, row, 0, 1, f"group {number}", "peer")
        wide.learn(values, 0, f"group {number}")
    rows, sizes = wide.take()
    assert 4 <= sum(len(each.payload) for each in rows) <= MOST_BYTES
    assert 4 <= sum(each.squares.nbytes for each in sizes) <= MOST_BYTES


def test_who_comes_first_and_with_most_keeps_nobody_out() -> None:
    sampler = RowSampler(WIDTH, learning=True)
    row, values = payload(F8, 1), np.ones((16, WIDTH), np.float32)
    for group in ["loud"] * 10_000 + ["a", "b"]:
        sampler.took(F8, row, 0, 1, group, "peer")
        sampler.learn(values, 0, group)
    for kept in sampler.take():
        assert {each.group for each in kept} == {"loud", "a", "b"}
    sampler.took(F8, row, 0, 1, "loud", "peer")
    assert len(sampler.take()[0]) == 1


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
    sampler.full = frozenset({"group"})
    assert sampler.learn(values, 0, "group") == 0
    assert sampler.learn(values, 0, "other") == 300
    assert RowSampler(WIDTH, learning=False).learn(values, 0, "group") == 0


def test_rows_that_come_one_by_one_are_learned_from_together() -> None:
    sampler = RowSampler(WIDTH, learning=True)
    few = FewAtATime(sampler)
    rows = np.random.default_rng(0).standard_normal((LEAST_TOGETHER + 3, WIDTH)).astype(np.float32)
    for at in range(len(rows) - 1):
        few.came(rows[at : at + 1], "a")
    _, (sample,) = sampler.take()
    assert (sample.rows, sample.group) == (LEAST_TOGETHER, "a")
    assert (sample.squares == channel_squares(rows[:LEAST_TOGETHER])).all()
    few.came(rows[:LEAST_TOGETHER], "b")  # what waits of another group is not this one's
    _, (sample,) = sampler.take()
    assert (sample.rows, sample.group) == (LEAST_TOGETHER, "b")
    for _ in range(MOST_OF_A_SESSION):
        few.came(rows[:5], "b")
    assert 2 * LEAST_TOGETHER + sum(each.rows for each in sampler.take()[1]) == MOST_OF_A_SESSION
    assert not few._waiting
    sampler.full = frozenset({"c"})
    other = FewAtATime(sampler)
    other.came(rows, "c")
    assert sampler.take() == ([], [])
    assert not other._waiting
