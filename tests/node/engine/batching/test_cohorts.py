"""Two groups of decoding sessions where a node has time left: alone, and in a simulated chain of nodes."""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import count

import pytest

from swarm_node.node.engine.batching.cohorts import DECODE_LINGERS_NS, Cohorts
from swarm_node.node.engine.batching.scheduler import Scheduler

MS = 1_000_000


def cohorts(idle: float, sessions: int) -> tuple[Cohorts, int]:
    """After many batches of ``sessions`` with this part of the time idle; and when the next may begin."""
    made, now = Cohorts(), 10**9
    for _ in range(100):
        for session in range(sessions):
            made.decodes(session, now)
        made.computed(now, now + round((1 - idle) * 10 * MS))
        now += 10 * MS
    return made, now


def test_a_busy_node_takes_all() -> None:
    made, now = cohorts(0.1, 8)
    assert made.most(now) is None


@pytest.mark.parametrize(("sessions", "most"), [(1, 1), (2, 1), (3, 2), (8, 4), (33, 17)])
def test_a_node_with_time_left_takes_half(sessions: int, most: int) -> None:
    made, now = cohorts(0.5, sessions)
    assert made.most(now) == most


def test_sessions_that_do_not_decode_any_more_do_not_count() -> None:
    made, now = cohorts(0.5, 8)
    later = now + DECODE_LINGERS_NS
    made.decodes(3, later)
    assert made.most(later) == 1
    assert made.most(later + 2 * DECODE_LINGERS_NS) is None  # nobody decodes: nothing is known


def test_it_keeps_nothing_of_sessions_that_are_gone() -> None:
    made, now = cohorts(0.5, 8)
    for session in range(10_000):
        made.decodes(session, now)
        made.most(now)
        now += DECODE_LINGERS_NS // 10
    assert len(made._decoded) <= 12


class Chain:
    """Nodes that each compute for 1.4 ms and 0.58 ms a row, and clients that answer after ``away_ms``: what
    was computed together goes on together."""

    def __init__(self, nodes: int, sessions: int, away_ms: float) -> None:
        self.schedulers: list[Scheduler[int]] = [Scheduler(512) for _ in range(nodes)]
        self.free = [True] * nodes
        self.now = 10**9
        self.events: list[tuple[int, int, str, int, list[int]]] = []
        self.numbers = count()
        self.away_ns = round(away_ms * MS)
        self.tokens: Counter[int] = Counter()
        self.rows: list[int] = []
        self.at(0, "arrives", 0, [*range(sessions)])

    def at(self, delay: int, what: str, node: int, sessions: list[int]) -> None:
        heapq.heappush(self.events, (self.now + delay, next(self.numbers), what, node, sessions))

    def run(self, seconds: float) -> float:
        """Tokens a second in the second half of the time."""
        began, middle = self.now, self.now + round(seconds * 5e8)
        early = 0
        while self.now < began + seconds * 1e9:
            self.now, _, what, node, sessions = heapq.heappop(self.events)
            if self.now <= middle:
                early = self.tokens.total()
            if what == "arrives" and node == len(self.schedulers):
                self.tokens.update(sessions)
                self.at(self.away_ns, "arrives", 0, sessions)
                continue
            if what == "arrives":
                for session in sessions:
                    self.schedulers[node].add(session, f"client {session}", 1)
            else:
                self.free[node] = True
                self.at(MS // 5, "arrives", node + 1, sessions)
            self.begin(node)
        return 2 * (self.tokens.total() - early) / seconds

    def begin(self, node: int) -> None:
        scheduler = self.schedulers[node]
        if not self.free[node] or not scheduler:
            return
        batch = scheduler.next_batch(self.now)
        took = round((1.4 + 0.575 * batch.decode_rows) * MS)
        scheduler.computed(self.now, self.now + took)
        self.rows.append(batch.decode_rows)
        self.free[node] = False
        self.at(took, "computed", node, [part.key for part in batch.slices])


@pytest.mark.parametrize("sessions", [8, 16, 32])
@pytest.mark.parametrize("nodes", [2, 3])
def test_a_convoy_of_clients_falls_apart(nodes: int, sessions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    apart = Chain(nodes, sessions, away_ms=1)
    found = apart.run(4)
    monkeypatch.setattr(Cohorts, "most", lambda self, now: None)
    convoy = Chain(nodes, sessions, away_ms=1).run(4)
    assert found > 1.35 * convoy
    assert min(apart.tokens.values()) >= 0.98 * max(apart.tokens.values())


def test_a_node_without_time_left_computes_all_at_once() -> None:
    alone = Chain(1, 16, away_ms=0)
    alone.run(2)
    assert max(alone.rows[-50:]) >= 15
