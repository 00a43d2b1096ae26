"""A reader's judgement as a whole: a codec that does harm is found out, a poisoned table too, and a good one
is offered."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from swarm_node.swarm.codecs.codec import Codec
from swarm_node.swarm.codecs.int8s import Int8sCodec
from swarm_node.swarm.codecs.kinds import F8, INT8
from swarm_node.swarm.codecs.scales import ScaleTable
from swarm_node.swarm.fidelity.error_watch import REMEMBERED_S
from swarm_node.swarm.fidelity.row_reader import RowReader
from swarm_node.swarm.fidelity.row_sampler import EVERY

WIDTH = 256
ONES = np.ones(WIDTH, np.float32)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def rows(count: int = EVERY, *, spread: float = 1.0, seed: int = 0) -> np.ndarray:
    """``spread``: of the channels' sizes, in powers of e."""
    random = np.random.default_rng(seed)
    sizes = np.exp(np.random.default_rng(9).standard_normal(WIDTH) * spread)
    return (random.standard_normal((count, WIDTH)) * sizes).astype(np.float32)


def send(reader: RowReader, codec: Codec, x: np.ndarray, group: str = "a", peer: str = "p") -> None:
    """As the engine does with a prompt."""
    payload = codec.encode(x)
    reader.sampler.took(codec, payload, 0, len(x), group, peer)
    reader.sampler.learn(codec.decode(payload, *x.shape), 0, group)


def few_large_channels() -> tuple[np.ndarray, np.ndarray]:
    """Rows and weights with which int8's steps swamp what is read: 32 huge channels that the norm removes."""
    x = rows(16 * EVERY)
    x[:, :32] *= 100
    weights = ONES.copy()
    weights[:32] = 1 / 100
    return x, weights


def test_a_codec_that_swamps_what_is_read_is_coarse(caplog: pytest.LogCaptureFixture) -> None:
    x, weights = few_large_channels()
    reader = RowReader(weights, Clock(), passed=("int8", "f8"))
    send(reader, INT8, x)
    send(reader, F8, x)
    with caplog.at_level(logging.WARNING):
        reader.look()
        reader.look()
    assert reader.coarse == ("int8",)
    assert len([line for line in caplog.messages if "codec_too_coarse" in line]) == 1


def test_what_is_fair_needs_a_certificate() -> None:
    x = rows(16 * EVERY, spread=0.0)
    for passed, coarse in (((), ("f8",)), (("f8",), ())):
        reader = RowReader(ONES, Clock(), passed=passed)
        send(reader, F8, x)
        reader.look()
        assert 0.01 < reader.loss("f8").mean < 0.025
        assert reader.coarse == coarse


def test_a_codec_gets_another_chance() -> None:
    x, weights = few_large_channels()
    clock = Clock()
    reader = RowReader(weights, clock)
    send(reader, INT8, x)
    reader.look()
    clock.now = REMEMBERED_S
    reader.look()
    assert reader.coarse == ()


def test_scales_are_offered_once_enough_rows_came_and_are_good() -> None:
    x = rows(8 * EVERY, spread=2.0)
    reader = RowReader(ONES, Clock(), passed=("f8",))
    send(reader, F8, x[: 7 * EVERY])
    reader.look()
    assert reader.table_for("a") is None
    send(reader, F8, x[7 * EVERY :], peer="q")
    reader.look()
    table = reader.table_for("a")
    assert table is not None
    send(reader, Int8sCodec.of(table), rows(8 * EVERY, spread=2.0, seed=1))
    reader.look()
    assert 0 < reader.loss("int8s").mean < 0.01
    assert reader.coarse == ()


def test_scales_that_do_harm_are_dropped() -> None:
    """Rows of another kind come than those that were learned from."""
    reader = RowReader(ONES, Clock(), passed=("f8", "int8s"))
    before = rows(8 * EVERY)
    before[:, ::2] *= 2**24
    send(reader, F8, before)
    reader.look()
    table = reader.table_for("a")
    assert table is not None
    send(reader, Int8sCodec.of(table), rows(64 * EVERY))
    reader.look()
    assert reader.table_for("a") is None
    assert reader.coarse == ("int8s",)


def test_a_certificate_s_scales_stay() -> None:
    table = ScaleTable.from_rms(np.exp(np.random.default_rng(3).standard_normal(WIDTH)))
    reader = RowReader(ONES, Clock(), table=table)
    assert reader.table_for("anyone") is table
    assert not reader.sampler.learns_from("a")
    send(reader, F8, rows(16 * EVERY))
    reader.look()
    assert reader.table_for("a") is table
