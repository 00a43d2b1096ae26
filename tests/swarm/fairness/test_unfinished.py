"""What unfinished frames may hold: never more than the bound, and the wasteful end before the useful."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.fairness.shares import Holder, ShareLimits
from swarm_node.swarm.fairness.unfinished import (
    GROWTH_WINDOW_S,
    MIN_BYTES_PER_S,
    UnfinishedFrame,
    UnfinishedFrames,
)


class Bench:
    def __init__(self, total: int = 1000) -> None:
        self.now = 0.0
        self.frames = UnfinishedFrames(lambda: self.now, ShareLimits(total))
        self.ended: list[UnfinishedFrame] = []

    def frame(self, peer: str, group: str = "") -> UnfinishedFrame:
        frame = self.frames.on_stream(Holder(peer, group), lambda why: self.ended.append(frame))
        return frame


def test_bytes_count_until_the_frame_is_complete():
    bench = Bench()
    frame = bench.frame("a")
    for size in (10, 400, 400, 900, 20, 0, 0, 30):
        frame.holds(size)
        assert bench.frames.held == size
        assert len(bench.frames) == (size > 0)
    assert not bench.ended


def test_the_frame_of_the_greediest_that_stands_still_ends_first():
    bench = Bench()
    busy, still, small, mine = bench.frame("a"), bench.frame("a"), bench.frame("a"), bench.frame("b")
    still.holds(400)
    small.holds(50)
    bench.now = 5.0
    busy.holds(450)
    mine.holds(200)
    assert bench.ended == [still]
    assert bench.frames.held == 700
    mine.holds(280)
    busy.holds(700)  # nobody has more than this peer
    assert bench.ended == [still, busy] or bench.ended == [still, small]
    assert bench.frames.held <= 1000


def test_many_identities_of_one_network_keep_nobody_out():
    bench = Bench()
    crowd = [bench.frame(f"sybil{number}", "net1") for number in range(100)]
    for frame in crowd:
        frame.holds(10)
    honest = bench.frame("me", "net2")
    for size in range(50, 501, 50):
        honest.holds(size)
    assert honest not in bench.ended
    assert len(bench.ended) == 50
    honest.holds(511)  # more than the other network has
    assert honest in bench.ended


def test_a_frame_must_grow():
    bench = Bench(total=10**9)
    slow, stalled, late = bench.frame("a"), bench.frame("b"), bench.frame("c")
    stalled.holds(15_000_000)
    for second in range(1, int(GROWTH_WINDOW_S) + 1):
        bench.now = float(second)
        slow.holds(second * (MIN_BYTES_PER_S + 1))
        if second == 20:
            late.holds(5)
        bench.frames.sweep()
    assert bench.ended == [stalled]
    bench.now += GROWTH_WINDOW_S - 11
    bench.frames.sweep()
    assert bench.ended == [stalled, slow]  # the other's network may be away for as long
    bench.now += 11
    bench.frames.sweep()
    assert bench.ended == [stalled, slow, late]
    assert (bench.frames.held, len(bench.frames)) == (0, 0)


@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 300), st.floats(0, 50)), max_size=60),
    st.integers(1, 1000),
)
def test_the_bound_holds_whatever_comes(events, total):
    bench = Bench(total)
    frames = [bench.frame(f"p{number % 4}", f"g{number % 3}") for number in range(8)]
    for number, size, pause in events:
        bench.now += pause
        if frames[number] not in bench.ended:
            frames[number].holds(size)
        assert bench.frames.held <= total
        assert bench.frames.held == sum(frame.held for frame in frames)
        bench.frames.sweep()
        assert len(set(map(id, bench.ended))) == len(bench.ended)
