"""Who may take how much, who gives back, and what a busy node advises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node.admission import (
    MAX_RETRY_S,
    MAX_WANTING,
    MIN_RETRY_S,
    NO_BOUND,
    WANT_SECONDS,
    Admission,
    Resting,
)
from swarm_node.swarm.errors import UsageError


def test_a_lonely_peer_may_have_everything():
    admission = Admission(1000)
    assert admission.allowance("a", {}, 0.0) == NO_BOUND
    assert admission.allowance("a", {"a": 900, "b": 50}, 0.0) == NO_BOUND  # the other wants no more
    admission.want("a", 500, 0.0)
    assert admission.allowance("a", {"a": 900}, 0.0) == NO_BOUND  # its own want stops nobody


def test_who_waits_holds_the_others_to_an_equal_share():
    admission = Admission(1000)
    admission.want("b", 300, 10.0)
    held = {"a": 900}
    assert admission.allowance("a", held, 11.0) == 500
    assert admission.allowance("c", held, 11.0) == NO_BOUND  # a first session is always within its share
    assert admission.allowance("a", held | {"c": 50}, 11.0) == 333
    assert admission.allowance("a", held, 10.0 + WANT_SECONDS) == NO_BOUND  # it did not come back
    admission.want("b", 300, 50.0)
    admission.satisfied("b")
    assert admission.allowance("a", held, 50.0) == NO_BOUND


def test_the_share_of_one_peer_is_a_bound_of_its_own():
    admission = Admission(1000, 0.4)
    assert admission.most_cells == 400
    assert admission.allowance("a", {}, 0.0) == 400
    assert admission.equal_share(["a"], 0.0) == 400
    assert admission.equal_share(["a", "b", "c", "d"], 0.0) == 250
    for cells, share in ((0, 1.0), (10, 0.0), (10, 1.1)):
        with pytest.raises(UsageError):
            Admission(cells, share)


def test_peers_that_wait_are_bounded():
    admission = Admission(10**6)
    for number in range(3 * MAX_WANTING):
        admission.want(f"peer{number}", 1, 0.0)
    assert admission.ahead_of("me", 1.0) == MAX_WANTING
    assert admission.ahead_of(f"peer{3 * MAX_WANTING - 1}", 1.0) == MAX_WANTING - 1
    assert admission.ahead_of("me", WANT_SECONDS) == 0


def test_advice_follows_how_long_sessions_last():
    admission = Admission(1000)
    for _ in range(50):
        admission.ended(8.0)
    assert admission.retry_after_s(250, 1000) == pytest.approx(2.0)  # a quarter of them in a quarter of 8 s
    assert admission.retry_after_s(1000, 1000) == pytest.approx(8.0)
    for _ in range(50):
        admission.ended(0.8)
    assert admission.retry_after_s(1000, 1000) == pytest.approx(0.8, rel=0.01)
    assert admission.retry_after_s(1, 1000) == MIN_RETRY_S
    assert admission.retry_after_s(10**9, 0) == MAX_RETRY_S


@given(
    lifetimes=st.lists(st.floats(0, 1e6), max_size=5),
    missing=st.integers(1, 10**9),
    in_use=st.integers(0, 10**9),
)
def test_advice_is_bounded_and_grows_with_what_is_missing(lifetimes, missing, in_use):
    admission = Admission(10**9)
    for seconds in lifetimes:
        admission.ended(seconds)
    advice = admission.retry_after_s(missing, in_use)
    assert MIN_RETRY_S <= advice <= MAX_RETRY_S
    assert admission.retry_after_s(missing + 1, in_use) >= advice
    assert admission.retry_after_s(missing, in_use + 1) <= advice


peers = st.sampled_from(["a", "b", "c", "me"])


@given(
    sessions=st.lists(st.tuples(peers, st.integers(1, 60), st.floats(0, 100), st.booleans()), max_size=12),
    missing=st.integers(1, 120),
)
def test_reclaims_enough_or_nothing_and_never_from_who_is_within_its_share(sessions, missing):
    held: dict[str, int] = {}
    for peer, cells, _, _ in sessions:
        held[peer] = held.get(peer, 0) + cells
    total = max(1, sum(held.values()))
    admission = Admission(total)
    resting = [Resting(peer, cells, used) for peer, cells, used, rests in sessions if rests]
    share = admission.equal_share({*held, "me"}, 0.0)
    chosen = admission.to_reclaim("me", missing, resting, held, 0.0)
    assert len(set(chosen)) == len(chosen)
    left = dict(held)
    for index in chosen:
        assert resting[index].peer_id != "me"
        assert left[resting[index].peer_id] > share
        left[resting[index].peer_id] -= resting[index].kv_cells
    taken = sum(resting[index].kv_cells for index in chosen)
    if chosen:
        assert taken >= missing
        assert taken - resting[chosen[-1]].kv_cells < missing  # not one more than needed
        times = [resting[index].last_used for index in chosen]
        assert times == sorted(times)
    else:  # indeed not enough: whatever rests beyond the shares would not do
        left = dict(held)
        for session in sorted(resting, key=lambda each: each.last_used):
            if session.peer_id != "me" and left[session.peer_id] > share:
                left[session.peer_id] -= session.kv_cells
        assert sum(held.values()) - sum(left.values()) < missing
