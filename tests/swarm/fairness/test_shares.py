from __future__ import annotations

import math
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.errors import LocalProtocolError, UsageError
from swarm_node.swarm.fairness.shares import Holder, ShareLimits, Shares


def test_each_limit_is_named_when_it_is_reached() -> None:
    shares = Shares(ShareLimits(total=6, per_group=4, per_peer=2))
    a, b, c = Holder("a", "net 1"), Holder("b", "net 1"), Holder("c", "net 1")
    assert shares.take(a, 2) == "" == shares.take(b, 2)
    assert shares.take(a) == "one peer may hold 2"
    assert shares.take(c) == "the peers of one network may hold 4 together"
    assert shares.take(Holder("d", "net 2"), 2) == ""
    assert shares.take(Holder("e", "net 3")) == "all peers may hold 6 together"
    assert (shares.held, shares.of_group("net 1"), shares.of_peer(a), len(shares)) == (6, 4, 2, 3)


def test_what_is_not_held_cannot_be_given_back() -> None:
    shares = Shares(ShareLimits(total=6))
    shares.take(Holder("a", "net 1"))
    with pytest.raises(LocalProtocolError):
        shares.give_back(Holder("a", "net 2"))
    with pytest.raises(LocalProtocolError):
        shares.give_back(Holder("a", "net 1"), 2)


def test_limits_below_one_thing_are_refused() -> None:
    with pytest.raises(UsageError):
        ShareLimits(total=0)


def test_invented_identities_of_one_network_give_way_to_another_network() -> None:
    shares = Shares(ShareLimits(total=100))
    for number in range(100):
        shares.take(Holder(f"sybil {number}", "net 1"))
    newcomer = Holder("honest", "net 2")
    loser = shares.loser(newcomer)
    assert loser is not None
    assert loser.group == "net 1"
    shares.give_back(loser)
    assert shares.take(newcomer) == ""


def test_within_a_network_the_heaviest_peer_gives_way() -> None:
    shares = Shares(ShareLimits(total=10))
    shares.take(Holder("greedy", "net 1"), 9)
    shares.take(Holder("modest", "net 1"), 1)
    assert shares.loser(Holder("new", "net 1")) == Holder("greedy", "net 1")
    assert shares.loser(Holder("modest", "net 1"), 5) is None  # it would hold more than the other then


def test_who_cannot_lose_is_passed_over() -> None:
    shares = Shares(ShareLimits(total=10))
    shares.take(Holder("busy", "net 1"), 6)
    shares.take(Holder("idle", "net 1"), 4)
    loser = shares.loser(Holder("new", "net 2"), may_lose=lambda holder: holder.peer_id == "idle")
    assert loser == Holder("idle", "net 1")


_holders = st.builds(Holder, st.sampled_from("abcdef"), st.sampled_from(["net 1", "net 2", "net 3"]))


@given(st.lists(st.tuples(_holders, st.integers(1, 5), st.booleans()), max_size=60))
def test_counts_are_exact_and_within_limits_whatever_is_taken_and_given_back(
    steps: list[tuple[Holder, int, bool]],
) -> None:
    limits = ShareLimits(total=20, per_group=12, per_peer=7)
    shares = Shares(limits)
    held: Counter[Holder] = Counter()
    for holder, amount, takes in steps:
        if takes and not shares.take(holder, amount):
            held[holder] += amount
        elif not takes and held[holder] >= amount:
            shares.give_back(holder, amount)
            held[holder] -= amount
        held = +held
        assert shares.held == sum(held.values()) <= limits.total
        assert len(shares) == len(held)
        assert all(shares.of_peer(holder) == count <= limits.per_peer for holder, count in held.items())
        assert all(shares.of_group(group) <= limits.per_group for group in {h.group for h in held})


@given(st.lists(st.integers(0, 8), min_size=1, max_size=5), st.integers(1, 30))
def test_taking_from_losers_divides_evenly_and_always_ends(others: list[int], wanted: int) -> None:
    shares = Shares(ShareLimits(total=sum(others) or 1))
    for number, amount in enumerate(others):
        if amount:
            shares.take(Holder("x", f"net {number}"), amount)
    newcomer = Holder("new", "ours")
    got = 0
    for _ in range(wanted):
        if shares.take(newcomer):
            loser = shares.loser(newcomer)
            if loser is None:
                break
            shares.give_back(loser)
            assert not shares.take(newcomer)
        got += 1
    fair = math.floor(shares.limits.total / (len([amount for amount in others if amount]) + 1))
    assert got >= min(wanted, fair)


def test_of_equals_the_last_to_come_gives_way_whatever_its_name() -> None:
    shares = Shares(ShareLimits(total=4))
    for name in "zxay":
        shares.take(Holder(name, "net 1"))
    newcomer = Holder("new", "net 2")
    assert shares.loser(newcomer) == Holder("y", "net 1")
    shares.give_back(Holder("z", "net 1"))
    shares.take(Holder("z", "net 1"))  # it was away: now it is the last
    assert shares.loser(newcomer) == Holder("z", "net 1")


@given(st.lists(st.tuples(_holders, st.integers(1, 3), st.booleans()), max_size=80), _holders)
def test_loser_is_what_counting_anew_would_say(
    steps: list[tuple[Holder, int, bool]], newcomer: Holder
) -> None:
    shares = Shares(ShareLimits(total=1000))
    held: Counter[Holder] = Counter()
    for holder, amount, takes in steps:
        if takes or held[holder] < amount:
            shares.take(holder, amount)
            held[holder] += amount
        else:
            shares.give_back(holder, amount)
            held[holder] -= amount
        loser = shares.loser(newcomer)
        groups = Counter({h.group: 0 for h in +held})
        for each, count in held.items():
            groups[each.group] += count
        others = [count for group, count in groups.items() if group != newcomer.group]
        from_others = others and max(others) - 1 >= groups[newcomer.group] + 1
        if from_others:
            assert loser is not None
            assert loser.group != newcomer.group
            assert groups[loser.group] == max(others)
            assert held[loser] == max(count for h, count in held.items() if h.group == loser.group)
        elif loser is not None:
            assert loser.group == newcomer.group
            assert held[loser] - 1 >= held[newcomer] + 1


def test_asking_in_vain_is_cheap_however_many_hold() -> None:
    shares = Shares(ShareLimits(total=20_000))
    for number in range(20_000):
        shares.take(Holder(str(number), f"net {number % 5000}"))
    newcomer = Holder("new", "net 7")
    assert shares.loser(newcomer) is None
    began = time.process_time()
    for _ in range(1000):
        assert shares.loser(newcomer) is None
    assert time.process_time() - began < 1  # adding up 5,000 groups each time takes a minute
