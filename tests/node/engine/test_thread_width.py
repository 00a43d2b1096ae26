"""Threads by run delay: a model of a machine's cores says what each width would wait, on a fake clock."""

from __future__ import annotations

import gc
import os
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node.engine.run_delay import RunDelay
from swarm_node.node.engine.thread_width import LAST_TRIAL_NS, PAUSE_NS, ThreadWidth
from swarm_node.shards.kernels.library import ThreadPool

MS = 1_000_000


class Machine:
    """A node of ``most`` threads on a machine that leaves it ``cores``: threads beyond them wait."""

    def __init__(self, most: int, cores: float, *, reads: bool = True) -> None:
        self.cores = cores
        self.now = 10**12
        self.delay_ns = 0.0
        self.widths: list[int] = []
        self.width = ThreadWidth(most, (lambda: int(self.delay_ns)) if reads else None)

    def compute(self, batches: int, ms: float = 10) -> list[int]:
        """The width of each batch."""
        widths = []
        for _ in range(batches):
            widths.append(self.width.width)
            waiting = max(0.0, self.width.width - self.cores)
            began, self.now = self.now, self.now + int(ms * MS)
            self.delay_ns += waiting * ms * MS
            on_core = int(ms * MS * (1 - waiting / self.width.width))
            assert self.width.computed(began, self.now, on_core) == self.width.width
        self.widths += widths
        return widths

    def rest(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("most", [1, 2, 4, 16])
def test_alone_it_takes_all_and_keeps_them(most: int, reads: bool) -> None:
    assert set(Machine(most, most, reads=reads).compute(500)) == {most}


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize(("most", "cores"), [(2, 1), (4, 2), (4, 1), (16, 8), (16, 3), (64, 5)])
def test_beside_others_it_takes_what_they_leave(most: int, cores: int, reads: bool) -> None:
    machine = Machine(most, cores, reads=reads)
    machine.compute(100)
    widths = machine.compute(3000)
    assert sum(abs(width - cores) for width in widths) / len(widths) < 0.1 * cores + 0.05


def test_trials_that_fail_become_rare() -> None:
    machine = Machine(2, 1.0)
    machine.compute(2000)
    late = machine.compute(2000)  # 20 s
    trials = sum(after > before for before, after in pairwise(late))
    assert 1 <= trials <= 20 * 10**9 / LAST_TRIAL_NS + 1
    assert late.count(2) < 0.03 * len(late)


def test_when_the_others_leave_it_takes_all_again() -> None:
    machine = Machine(4, 1.0)
    machine.compute(500)
    machine.cores = 4
    machine.compute(int(1.1 * LAST_TRIAL_NS / (10 * MS)))
    assert set(machine.compute(200)) == {4}


def test_after_a_pause_it_tries_at_once() -> None:
    machine = Machine(2, 1.0)
    machine.compute(3000)
    machine.cores = 2
    machine.rest(2 * PAUSE_NS / 1e9)
    machine.compute(6)  # one window
    assert set(machine.compute(50)) == {2}


def test_what_others_did_while_it_rested_counts_for_nothing() -> None:
    machine = Machine(2, 2.0)
    machine.compute(20)
    for _ in range(50):
        machine.delay_ns += 400 * MS  # of its own threads, woken for nothing
        machine.rest(1)
        assert set(machine.compute(3)) == {2}


@given(
    st.lists(st.tuples(st.integers(0, 200), st.floats(0, 40), st.floats(0, 2)), max_size=60),
    st.integers(1, 33),
)
def test_it_never_leaves_its_bounds(moments: list[tuple[int, float, float]], most: int) -> None:
    machine = Machine(most, most)
    for batches, cores, pause in moments:
        machine.cores = cores
        machine.compute(batches)
        machine.rest(pause)
    assert all(1 <= width <= most for width in machine.widths)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the run delay of a thread")
def test_linux_tells_the_delay_of_the_workers_too() -> None:
    alone = RunDelay()
    pool = ThreadPool(3)
    delay = RunDelay()
    assert len(delay.files) - len(alone.files) == 2
    before = delay()
    assert 0 <= before <= delay()
    del pool
    gc.collect()
    assert delay() >= 0  # of threads that have ended: nothing


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the run delay of a thread")
def test_its_files_are_closed_with_it() -> None:
    files = len(os.listdir("/proc/self/fd"))
    delay = RunDelay()
    assert len(os.listdir("/proc/self/fd")) > files
    del delay
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files
