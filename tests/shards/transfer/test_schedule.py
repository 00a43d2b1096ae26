"""The schedule against a model of the world: peers, sources that come, go, stall and lie about nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.shards.transfer.schedule import (
    BACKLOG_S,
    DEAD_S,
    LATE_S,
    LONGEST_PROMISE_S,
    PROMISE_S,
    STALL_S,
    WINDOW,
    PieceSchedule,
    Request,
)
from swarm_node.shards.transfer.sent_log import SentLog

PIECE = 256 * 1024


def schedule_of(n: int, own: str = "me") -> PieceSchedule:
    schedule = PieceSchedule(n, PIECE, own)
    schedule.want(range(n))
    return schedule


def whole(n: int) -> np.ndarray:
    return np.ones(n, dtype=bool)


def only(n: int, *pieces: int) -> np.ndarray:
    held = np.zeros(n, dtype=bool)
    held[list(pieces)] = True
    return held


class World:
    """An origin with everything and peers that want all of it, in rounds: each round everybody asks what its
    schedule says, and gets ``speed`` answers of each source. The origin has a sent_log as
    ``piece_server``."""

    def __init__(self, n: int, peers: list[str], speeds: list[int]) -> None:
        self.n = n
        self.now = 0.0
        self.speed = dict(zip(peers, speeds, strict=True)) | {"origin": 4 * sum(speeds)}
        self.held = {peer: np.zeros(n, dtype=bool) for peer in peers} | {"origin": whole(n)}
        self.schedules = {peer: schedule_of(n, peer) for peer in peers}
        self.asked: dict[str, list[tuple[str, Request]]] = {peer: [] for peer in self.held}
        self.sent_log = SentLog()
        self.from_origin = 0
        self.news: dict[str, list[int]] = {peer: [] for peer in peers}
        for peer, schedule in self.schedules.items():
            for other in self.held.keys() - {peer}:
                schedule.add(other, self.held[other], self.now)

    def round(self) -> None:
        self.now += 0.01
        for peer, schedule in self.schedules.items():
            for request in schedule.requests(self.now):
                assert self.held[request.peer][request.piece], "asked of somebody who has not said to have it"
                assert not self.held[peer][request.piece], "asked for what is here"
                self.asked[request.peer].append((peer, request))
        for source, queue in self.asked.items():
            for asker, request in queue[: self.speed[source]]:
                self.answer(source, asker, request)
            del queue[: self.speed[source]]
        for peer, pieces in self.news.items():
            for other, schedule in self.schedules.items():
                if other != peer and pieces:
                    schedule.has(peer, pieces, self.now)
            pieces.clear()

    def answer(self, source: str, asker: str, request: Request) -> None:
        schedule, piece = self.schedules[asker], request.piece
        if source == "origin":
            other = None if request.insist else self.sent_log.elsewhere(piece, asker, self.now)
            if other is not None:
                schedule.elsewhere(source, piece, other, self.now)
                return
            self.sent_log.sent(piece, asker, self.now)
            self.from_origin += 1
        schedule.got(source, piece, self.now)
        if not self.held[asker][piece]:
            self.held[asker][piece] = True
            self.news[asker].append(piece)

    def run(self, limit: int = 20_000) -> None:
        for _ in range(limit):
            if not any(schedule.n_wanted for schedule in self.schedules.values()):
                return
            self.round()
        raise AssertionError("not everybody got everything")


@given(n=st.integers(1, 120), speeds=st.lists(st.integers(1, 20), min_size=1, max_size=6))
@settings(max_examples=15)
def test_each_piece_leaves_the_origin_about_once(n: int, speeds: list[int]) -> None:
    world = World(n, [f"peer{i}" for i in range(len(speeds))], speeds)
    world.run()
    assert n <= world.from_origin <= n * 1.02 + 2


def asked_in_turn(schedule: PieceSchedule, n: int) -> list[int]:
    order: list[int] = []
    while len(order) < n:
        for request in schedule.requests(0.0):
            order.append(request.piece)
            schedule.got(request.peer, request.piece, 0.0)
    return order


def test_a_lone_peer_takes_pieces_as_they_lie() -> None:
    schedule = schedule_of(3 * WINDOW)
    schedule.add("origin", whole(3 * WINDOW), 0.0)
    assert asked_in_turn(schedule, 3 * WINDOW) == list(range(3 * WINDOW))


def test_beside_others_a_peer_takes_each_window_in_an_order_of_its_own() -> None:
    n, orders = 3 * WINDOW, []
    for own in ("me", "you"):
        schedule = schedule_of(n, own)
        schedule.add("origin", whole(n), 0.0)
        schedule.add("other", only(n), 0.0)
        orders.append(order := asked_in_turn(schedule, n))
        assert [piece // WINDOW for piece in order] == [number // WINDOW for number in range(n)]
        assert order[:WINDOW] != sorted(order[:WINDOW])
    assert orders[0] != orders[1]


def test_equal_peers_share_the_work() -> None:
    world = World(300, ["a", "b", "c"], [8, 8, 8])
    world.run()
    went = [peer for peer, _ in world.sent_log._sent.values()]
    assert min(map(went.count, "abc")) > 60


@given(data=st.data())
@settings(max_examples=25)
def test_everything_comes_whatever_sources_do(data: st.DataObject) -> None:
    """Sources appear, vanish, stall, refuse, point elsewhere: what one live source has comes in the end."""
    n = data.draw(st.integers(1, 40))
    schedule, now = schedule_of(n), 0.0
    asked: dict[str, set[int]] = {}
    held: dict[str, np.ndarray] = {}
    got: set[int] = set()

    def note(requests: list[Request]) -> None:
        for request in requests:
            assert held[request.peer][request.piece]
            assert request.piece not in got
            assert request.piece not in asked[request.peer]
            asked[request.peer].add(request.piece)
            assert len(asked[request.peer]) <= schedule.depth

    for _ in range(data.draw(st.integers(0, 40))):
        now += data.draw(st.sampled_from([0.0, 0.1, 1.0, STALL_S + 0.1, PROMISE_S + 0.1]))
        name = data.draw(st.sampled_from(["a", "b", "c"]))
        match data.draw(st.sampled_from(["add", "remove", "has", "answer", "refuse", "elsewhere", "ask"])):
            case "add":
                bits = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
                held[name], asked[name] = np.array(bits), set()
                schedule.add(name, held[name].copy(), now)
            case "remove":
                held.pop(name, None)
                asked.pop(name, None)
                schedule.remove(name)
            case "has" if name in held:
                pieces = data.draw(st.lists(st.integers(0, n - 1), max_size=5))
                held[name][pieces] = True
                schedule.has(name, pieces, now)
            case "answer" if asked.get(name):
                piece = asked[name].pop()
                got.add(piece)
                schedule.got(name, piece, now)
            case "refuse" if asked.get(name):
                piece = asked[name].pop()
                held[name][piece] = False
                schedule.refused(name, piece, now)
            case "elsewhere" if asked.get(name):
                schedule.elsewhere(name, asked[name].pop(), data.draw(st.sampled_from("abcd")), now)
            case _:
                note(schedule.requests(now))
        assert schedule.n_wanted == n - len(got)
    asked["rescue"], held["rescue"] = set(), whole(n)
    schedule.add("rescue", whole(n), now)
    for _ in range(200):  # the others give nothing any more
        now += 1.0
        for dead in schedule.dead(now):
            assert dead != "rescue"
            schedule.remove(dead)
            held.pop(dead)
            asked.pop(dead)
        note(schedule.requests(now))
        while asked["rescue"]:
            piece = asked["rescue"].pop()
            got.add(piece)
            schedule.got("rescue", piece, now)
    assert schedule.n_wanted == 0


def test_what_a_part_holds_is_not_asked_of_the_whole_one() -> None:
    schedule = schedule_of(8)
    schedule.add("part", only(8, 0, 1, 2), 0.0)
    schedule.add("whole", whole(8), 0.0)
    asked = {(r.peer, r.piece) for r in schedule.requests(0.0)}
    assert {piece for peer, piece in asked if peer == "part"} == {0, 1, 2}
    assert {piece for peer, piece in asked if peer == "whole"} == {3, 4, 5, 6, 7}


def test_the_rarest_pieces_come_first() -> None:
    schedule = PieceSchedule(64, PIECE, "me")
    schedule.want(range(64))
    schedule.add("x", only(64, *range(40)), 0.0)
    schedule.add("y", whole(64) & ~only(64, 63), 0.0)
    asked = [r.piece for r in schedule.requests(0.0) if r.peer == "y"]
    assert len(asked) == schedule.depth
    assert all(piece >= 40 for piece in asked)


def test_a_stalled_source_is_passed_over() -> None:
    schedule = schedule_of(4)
    schedule.add("slow", whole(4), 0.0)
    assert len(schedule.requests(0.0)) == 4
    schedule.add("other", whole(4), 1.0)
    assert schedule.requests(STALL_S - 0.1) == []
    assert {r.peer for r in schedule.requests(STALL_S + 0.1)} == {"other"}
    assert schedule.dead(DEAD_S - 1) == []
    assert schedule.dead(DEAD_S + 1) == ["slow"]


def test_bytes_that_flow_are_no_stall_and_a_trickle_is() -> None:
    for a_second, silent in [(125_000, []), (1, ["far"])]:
        schedule = schedule_of(4)
        schedule.add("far", whole(4), 0.0)
        assert len(schedule.requests(0.0)) == 4
        for second in range(1, 9):
            schedule.flowed("far", second * a_second, float(second))
        assert schedule.stalled(8.1) == silent
        assert schedule.dead(8.1) == silent


def test_a_piece_that_is_long_in_coming_is_asked_of_others_too() -> None:
    schedule = schedule_of(4)
    schedule.add("far", whole(4), 0.0)
    assert len(schedule.requests(0.0)) == 4
    schedule.add("other", whole(4), 1.0)
    for second in range(1, int(LATE_S) + 2):
        schedule.flowed("far", second * 125_000, float(second))
    assert schedule.requests(LATE_S - 1) == []
    asked = schedule.requests(LATE_S + 1)
    assert {(r.peer, r.piece) for r in asked} == {("other", piece) for piece in range(4)}


def test_a_part_whose_pipe_is_full_for_long_is_not_waited_for() -> None:
    schedule = PieceSchedule(64, PIECE, "me")
    schedule.want(range(64))
    schedule.add("part", only(64, *range(63)), 0.0)
    asked = [r for r in schedule.requests(0.0) if r.peer == "part"]
    assert len(asked) == schedule.depth
    schedule.add("whole", whole(64), 0.0)
    assert {r.piece for r in schedule.requests(1.0)} == {63}
    for peer in ("part", "whole"):
        schedule.flowed(peer, 10**6, BACKLOG_S)
    assert len([r for r in schedule.requests(BACKLOG_S + 0.1) if r.peer == "whole"]) == schedule.depth - 1


def test_a_piece_that_went_elsewhere_is_awaited_there_and_then_insisted_on() -> None:
    schedule = schedule_of(1)
    schedule.add("origin", whole(1), 0.0)
    assert schedule.requests(0.0) == [Request("origin", 0)]
    schedule.elsewhere("origin", 0, "b", 0.0)
    assert schedule.requests(PROMISE_S - 0.1) == []
    schedule.add("b", only(1), PROMISE_S - 0.1)  # it tells that it lives: it may still be getting the piece
    assert schedule.requests(PROMISE_S + 0.1) == []
    assert schedule.requests(2 * PROMISE_S + 0.1) == [Request("origin", 0, insist=True)]


def test_nobody_is_awaited_for_ever() -> None:
    schedule = schedule_of(1)
    schedule.add("origin", whole(1), 0.0)
    assert schedule.requests(0.0) == [Request("origin", 0)]
    schedule.elsewhere("origin", 0, "b", 0.0)
    schedule.add("b", only(1), 0.0)
    now = 0.0
    while now < LONGEST_PROMISE_S + 1:
        now += 1.0
        schedule.has("b", [], now)  # news, though never of the piece
        if Request("origin", 0, insist=True) in schedule.requests(now):
            assert now > LONGEST_PROMISE_S
            return
    raise AssertionError("it is awaited for ever")


def test_one_who_cannot_be_reached_is_not_awaited() -> None:
    schedule = schedule_of(1)
    schedule.add("origin", whole(1), 0.0)
    schedule.requests(0.0)
    schedule.elsewhere("origin", 0, "b", 0.0)
    schedule.unreachable("b")
    assert schedule.requests(0.1) == [Request("origin", 0, insist=True)]


def test_the_last_resort_is_asked_only_for_what_nobody_else_has() -> None:
    schedule = schedule_of(6)
    schedule.add("the hub", whole(6), 0.0, last_resort=True)
    schedule.add("peer", only(6, 0, 1, 2), 0.0)
    asked = {(r.peer, r.piece) for r in schedule.requests(0.0)}
    assert {piece for peer, piece in asked if peer == "the hub"} == {3, 4, 5}
    schedule.remove("peer")
    assert {r.piece for r in schedule.requests(0.1)} == {0, 1, 2}


def test_everybody_asks_the_same_whole_source_first() -> None:
    """So that it knows who has what, and says so."""
    first = []
    for own in ("me", "you"):
        schedule = PieceSchedule(2000, 8 * 1024 * 1024, own)
        schedule.want(range(2000))
        for source in ("x", "y", "z"):
            schedule.add(source, whole(2000), 0.0)
        preferred = {source: schedule._sources[source].preferred for source in ("x", "y", "z")}
        for request in schedule.requests(0.0):
            assert preferred[request.peer][request.piece]
        first.append(preferred)
        assert all(500 < int(mask.sum()) < 850 for mask in preferred.values())
    assert all((first[0][source] == first[1][source]).all() for source in ("x", "y", "z"))


def test_what_a_peer_refused_is_not_awaited_from_it() -> None:
    """A disk may lose what another says it was sent: then the whole source is asked again at once."""
    schedule = schedule_of(1)
    schedule.add("damaged", whole(1), 0.0)
    assert schedule.requests(0.0) == [Request("damaged", 0)]
    schedule.refused("damaged", 0, 0.0)
    schedule.add("whole", whole(1), 0.0)
    assert schedule.requests(0.0) == [Request("whole", 0)]
    schedule.elsewhere("whole", 0, "damaged", 0.0)
    assert schedule.requests(0.0) == [Request("whole", 0, insist=True)]
    schedule.elsewhere("whole", 0, "another", 0.0)
    schedule.add("another", whole(1), 0.0)
    schedule.refused("another", 0, 0.0)  # the other way round
    assert schedule.requests(0.0) == [Request("whole", 0, insist=True)]
    schedule.has("another", [0], 0.0)
    schedule.elsewhere("whole", 0, "another", 0.0)
    assert schedule.requests(0.0) == [Request("another", 0, insist=True)]
