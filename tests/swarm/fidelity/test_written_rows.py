"""What the writer of rows sees of a table of scales: few rows, and the same verdict in whatever pieces."""

from __future__ import annotations

import numpy as np
import pytest

from swarm_node.swarm.codecs.codec import Codec
from swarm_node.swarm.codecs.int8s import Int8sCodec
from swarm_node.swarm.codecs.kinds import F8, INT8
from swarm_node.swarm.codecs.scales import ScaleTable
from swarm_node.swarm.fidelity.error_watch import LEAST_ROWS
from swarm_node.swarm.fidelity.row_sampler import EVERY
from swarm_node.swarm.fidelity.written_rows import WrittenRows

WIDTH = 64
GOOD = Int8sCodec.of(ScaleTable.from_rms(np.ones(WIDTH)))
BAD = Int8sCodec.of(ScaleTable.from_rms(np.where(np.arange(WIDTH) < WIDTH // 3, 2.0**30, 1.0)))

COARSE = Int8sCodec.of(ScaleTable.from_rms(np.where(np.arange(WIDTH) < WIDTH // 3, 2.0**4, 1.0)))


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, WIDTH)).astype(np.float32)


@pytest.mark.parametrize(
    ("codec", "harmed"), [(GOOD, False), (BAD, True), (COARSE, True), (INT8, False), (F8, False)]
)
def test_a_table_that_spoils_rows_is_seen_at_once(codec: Codec, harmed: bool) -> None:
    assert WrittenRows().harmed(codec, rows(LEAST_ROWS), 0) is harmed


@pytest.mark.parametrize(("codec", "rows_before"), [(BAD, 0), (COARSE, LEAST_ROWS - 1)])
def test_rows_may_come_one_by_one(codec: Codec, rows_before: int) -> None:
    """One that is spoilt tells at once; what may be a row's own fault, with others."""
    written, x = WrittenRows(), rows(LEAST_ROWS)
    said = [written.harmed(codec, x[at : at + 1], 500 + at) for at in range(rows_before + 1)]
    assert said == [False] * rows_before + [True]


def test_after_the_first_ones_every_64th_row_is_looked_at() -> None:
    written = WrittenRows()
    assert written.wants(GOOD, 3, 1)
    assert not written.wants(INT8, 3, 1)
    written.harmed(GOOD, rows(LEAST_ROWS), 0)
    assert [at for at in range(1000) if written.wants(GOOD, at, 1)] == [*range(0, 1000, EVERY)]
    assert written.wants(GOOD, 65, EVERY)
    assert not written.wants(GOOD, 65, EVERY - 1)


def test_a_table_that_does_harm_later_is_seen_too() -> None:
    written, x = WrittenRows(), rows(1)
    small = np.zeros((1, WIDTH), np.float32)
    small[:, 0] = 1
    for at in range(LEAST_ROWS):
        assert not written.harmed(BAD, small, at)
    said = [written.harmed(BAD, x, EVERY * at) for at in range(1, 4)]
    assert said[-1]


def test_what_cannot_be_lost_is_no_harm() -> None:
    assert not WrittenRows().harmed(BAD, np.zeros((LEAST_ROWS, WIDTH), np.float32), 0)
