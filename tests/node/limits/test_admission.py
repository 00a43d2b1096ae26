"""Who may take how much, who gives back, and what a busy node advises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node.limits.admission import (
    MAX_RETRY_S,
    MAX_WANTING,
    MIN_RETRY_S,
    NO_BOUND,
    PATIENCE_S,
    WANT_SECONDS,
    Admission,
    Holding,
    Reclaimable,
)
from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.fairness.shares import Holder

A, B, C, ME = (Holder(name) for name in ("a", "b", "c", "me"))
FREE = Holding(NO_BOUND, NO_BOUND)
ROOM = Holding(1, 0)
PLACE = Holding(0, 1)


def admission(cells: int = 1000, places: int = 100, share: float = 1.0) -> Admission:
    return Admission(cells, places, share)


def idle(holder: Holder, cells: int, tokens_per_s: float = 0.0, last_used: float = 0.0) -> Reclaimable:
    return Reclaimable(holder, cells, tokens_per_s, last_used, False)


def active(holder: Holder, cells: int, tokens_per_s: float = 9.0) -> Reclaimable:
    return Reclaimable(holder, cells, tokens_per_s, 0.0, True)


def held_of(sessions: list[Reclaimable]) -> dict[Holder, Holding]:
    held: dict[Holder, Holding] = {}
    for each in sessions:
        before = held.get(each.holder, Holding(0, 0))
        held[each.holder] = Holding(before.cells + each.kv_cells, before.places + 1)
    return held


# What may be held.


def test_a_lonely_peer_may_have_everything():
    book = admission()
    assert book.allowance(A, {}, 0.0) == FREE
    assert book.allowance(A, {A: Holding(900, 9), B: Holding(50, 1)}, 0.0) == FREE  # the other wants no more
    book.want(A, 500, 0.0)
    assert book.allowance(A, {A: Holding(900, 9)}, 0.0) == FREE  # its own want stops nobody


def test_who_waits_holds_the_others_to_an_equal_share():
    book = admission()
    book.want(B, 300, 10.0)
    held = {A: Holding(900, 9)}
    assert book.allowance(A, held, 11.0) == Holding(500, 50)
    assert book.allowance(C, held, 11.0) == FREE  # a first session is always within its share
    assert book.allowance(A, held | {C: Holding(50, 1)}, 11.0) == Holding(333, 33)
    assert book.allowance(A, held, 10.0 + WANT_SECONDS) == FREE  # it did not come back
    book.want(B, 300, 50.0)
    book.satisfied(B)
    assert book.allowance(A, held, 50.0) == FREE


def test_many_identities_of_one_network_have_one_networks_share():
    book = admission()
    mine = Holder("me", "home")
    held = {Holder(f"sybil{number}", "net"): Holding(9, 1) for number in range(100)} | {mine: Holding(90, 5)}
    for number in range(1000):
        book.want(Holder(f"more{number}", "net"), 10, 0.0)
    assert book.allowance(mine, held, 1.0) == Holding(500, 50)
    assert book.allowance(Holder("sybil1", "net"), held, 1.0) == Holding(1, 1)


def test_the_share_of_one_peer_is_a_bound_of_its_own():
    book = admission(share=0.4)
    assert book.most_cells == 400
    assert book.allowance(A, {}, 0.0).cells == 400
    book.want(B, 1, 0.0)
    assert book.allowance(A, {A: Holding(1, 1)}, 0.0).cells == 400
    assert book.allowance(A, {A: Holding(1, 1), C: Holding(1, 1)}, 0.0).cells == 333
    for cells, share in ((0, 1.0), (10, 0.0), (10, 1.1)):
        with pytest.raises(UsageError):
            admission(cells, share=share)


def test_peers_that_wait_are_bounded_and_a_crowd_drives_nobody_out():
    book = admission(10**6)
    mine = Holder("me", "home")
    book.want(mine, 5, 0.0)
    for number in range(3 * MAX_WANTING):
        book.want(Holder(f"peer{number}", "net"), 1, 0.0)
    assert book.ahead_of(Holder("other"), 1.0) == MAX_WANTING - 1 + 5
    assert book.ahead_of(mine, 1.0) == MAX_WANTING - 1
    assert book.ahead_of(mine, WANT_SECONDS) == 0


# Who gives back.


def test_the_least_used_of_what_they_hold_goes_first():
    sessions = [idle(A, 100, 0.2), idle(A, 400, 0.25), idle(A, 100, 0.0, 5.0), idle(A, 100, 0.0, 4.0)]
    held = held_of(sessions)
    for cells, gone in ((50, [3]), (200, [3, 2]), (300, [3, 2, 1])):
        assert admission(700).to_reclaim(ME, cells, Holding(cells, 0), sessions, held, 0.0) == gone
    assert admission(700).to_reclaim(ME, 400, Holding(400, 0), sessions, held, 0.0) == []  # beyond its share


def test_one_token_every_few_seconds_keeps_nothing_that_others_need():
    """Each session of four identities is used a little; all places are theirs."""
    sessions = [idle(Holder(f"x{number % 4}"), 4, 0.25, 99.0) for number in range(256)]
    book = admission(10**6, 256)
    assert len(book.to_reclaim(ME, 4, PLACE, sessions, held_of(sessions), 100.0)) == 1


def test_what_is_in_use_goes_only_for_who_has_waited_and_never_a_peers_last():
    sessions = [active(A, 250), active(A, 250, 3.0), active(B, 500)]
    held, book = held_of(sessions), admission(1000)
    assert book.to_reclaim(ME, 100, ROOM, sessions, held, 0.0) == []
    book.want(ME, 100, 0.0)
    assert book.to_reclaim(ME, 100, ROOM, sessions, held, PATIENCE_S - 0.1) == []
    assert book.to_reclaim(ME, 100, ROOM, sessions, held, PATIENCE_S) == [1]
    assert book.to_reclaim(ME, 100, Holding(300, 0), sessions, held, PATIENCE_S) == []


def test_networks_come_before_peers():
    """A hundred idle identities behind one network, and one honest peer that holds more than each of them."""
    honest, newcomer = Holder("honest", "home"), Holder("me", "cafe")
    crowd = [idle(Holder(f"sybil{number}", "net"), 6) for number in range(100)]
    sessions = [*crowd, idle(honest, 300)]
    held = held_of(sessions)
    chosen = admission(900).to_reclaim(newcomer, 200, Holding(200, 0), sessions, held, 0.0)
    assert len(chosen) == 34
    assert 100 not in chosen
    late = Holder("late", "net")  # nor do more identities get anything at the honest one's cost
    assert 100 not in admission(900).to_reclaim(late, 6, ROOM, sessions, held, 0.0)
    assert admission(900).to_reclaim(Holder("sybil1", "net"), 6, ROOM, sessions, held, 0.0) == []


def test_a_crowd_of_one_network_with_a_session_each_keeps_nobody_out():
    crowd = [idle(Holder(f"sybil{number}", "net"), 4) for number in range(256)]
    for newcomer, needs_patience in ((Holder("me", "home"), False), (Holder("me", "net"), True)):
        book, held = admission(1024, 256), held_of(crowd)
        missing = Holding(60, 1)
        assert bool(book.to_reclaim(newcomer, 60, missing, crowd, held, 0.0)) is not needs_patience
        book.want(newcomer, 60, 0.0)
        assert len(book.to_reclaim(newcomer, 60, missing, crowd, held, PATIENCE_S)) == 15
        used = [active(each.holder, 4, 1.0) for each in crowd]
        taken = book.to_reclaim(newcomer, 60, missing, used, held, PATIENCE_S)
        assert len(taken) == (15 if newcomer.group == "home" else 0)  # use counts among its like
        assert admission(1024, 256).to_reclaim(newcomer, 60, missing, used, held, PATIENCE_S) == []


def test_a_lone_session_in_use_is_no_crowd():
    book, me = admission(1000), Holder("me", "home")
    sessions = [active(Holder("long", "net"), 900), active(Holder("short", "other"), 100)]
    book.want(me, 300, 0.0)
    assert book.to_reclaim(me, 300, Holding(300, 0), sessions, held_of(sessions), PATIENCE_S) == []
    crowd = [active(Holder(f"sybil{number}", "net"), 90) for number in range(10)]
    assert len(book.to_reclaim(me, 300, Holding(300, 0), crowd, held_of(crowd), PATIENCE_S)) == 4
    assert (
        book.to_reclaim(me, 501, Holding(501, 0), crowd, held_of(crowd), PATIENCE_S) == []
    )  # beyond its part


holders = st.builds(Holder, st.sampled_from(["a", "b", "c", "me"]), st.sampled_from(["", "x", "y"]))


@given(
    sessions=st.lists(
        st.builds(
            Reclaimable, holders, st.integers(1, 60), st.floats(0, 9), st.floats(0, 100), st.booleans()
        ),
        max_size=12,
    ),
    me=holders,
    missing=st.integers(1, 120),
    waited=st.booleans(),
    place=st.booleans(),
)
def test_reclaims_enough_or_nothing_and_only_from_who_is_beyond(sessions, me, missing, waited, place):
    held = held_of(sessions)
    total = max(1, sum(each.cells for each in held.values()))
    book = admission(total, max(1, len(sessions)))
    if waited:
        book.want(me, missing, -PATIENCE_S)
    wanted = Holding(missing, int(place))
    chosen = book.to_reclaim(me, missing, wanted, sessions, held, 0.0)
    assert len(set(chosen)) == len(chosen)
    groups = {holder.group for holder in held} | {me.group}
    left = dict(held)
    for number, index in enumerate(chosen):
        each = sessions[index]
        peers = {holder for holder in {*held, me} if holder.group == each.holder.group}
        assert each.holder != me
        share = total / len(groups) / len(peers), len(sessions) / len(groups) / len(peers)
        beyond = left[each.holder].cells > share[0] or (place and left[each.holder].places > share[1])
        own_crowd = waited and me not in held and each.holder.group == me.group and not each.active
        assert beyond or own_crowd
        assert not each.active or (waited and left[each.holder].places > 1)
        if each.holder.group != me.group:
            theirs = [what for holder, what in left.items() if holder.group == each.holder.group]
            over = sum(what.cells for what in theirs) > total / len(groups)
            assert over or sum(what.places for what in theirs) > len(sessions) / len(groups)
        left[each.holder] = Holding(left[each.holder].cells - each.kv_cells, left[each.holder].places - 1)
        before = sum(sessions[earlier].kv_cells for earlier in chosen[:number])
        assert before < missing or (place and number == 0)  # not one more than needed
    if chosen:
        assert sum(sessions[index].kv_cells for index in chosen) >= missing


# Advice.


def test_advice_follows_how_long_sessions_last():
    book = admission()
    for _ in range(50):
        book.ended(8.0)
    assert book.retry_after_s(250, 1000) == pytest.approx(2.0)  # a quarter of them in a quarter of 8 s
    assert book.retry_after_s(1000, 1000) == pytest.approx(8.0)
    for _ in range(50):
        book.ended(0.8)
    assert book.retry_after_s(1000, 1000) == pytest.approx(0.8, rel=0.01)
    assert book.retry_after_s(1, 1000) == MIN_RETRY_S
    assert book.retry_after_s(10**9, 0) == MAX_RETRY_S


@given(
    lifetimes=st.lists(st.floats(0, 1e6), max_size=5),
    missing=st.integers(1, 10**9),
    in_use=st.integers(0, 10**9),
)
def test_advice_is_bounded_and_grows_with_what_is_missing(lifetimes, missing, in_use):
    book = admission(10**9)
    for seconds in lifetimes:
        book.ended(seconds)
    advice = book.retry_after_s(missing, in_use)
    assert MIN_RETRY_S <= advice <= MAX_RETRY_S
    assert book.retry_after_s(missing + 1, in_use) >= advice
    assert book.retry_after_s(missing, in_use + 1) <= advice
