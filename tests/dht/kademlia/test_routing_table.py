"""The routing table: who is in it, who makes room, and whom it names."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from swarm_node.dht.kademlia.contacts import Contact
from swarm_node.dht.kademlia.routing_table import BUCKET_SIZE, WAITING, RoutingTable
from tests.doubles.clock import Clock

TOP = 1 << 159


def peer(number: int) -> Contact:
    """One of the half of the ids that is far from 0: they share a bucket."""
    return Contact(TOP + number, f"peer {number}")


def table() -> tuple[RoutingTable, Clock]:
    clock = Clock()
    return RoutingTable(0, clock), clock


def test_a_full_bucket_keeps_whom_it_has_and_tells_whom_to_check() -> None:
    known, clock = table()
    for number in range(BUCKET_SIZE):
        clock.now = number
        assert known.answered(peer(number), "a") is None
    assert known.answered(peer(99), "a") == peer(0)
    assert peer(99) not in known
    assert known.answered(peer(0), "a") is None  # it answered: the next is the oldest
    assert known.answered(peer(99), "a") == peer(1)
    known.failed(peer(1))
    assert peer(1) not in known
    assert peer(99) in known  # it waited
    assert len(known) == BUCKET_SIZE


def test_who_does_not_answer_leaves_and_is_not_named() -> None:
    known, _ = table()
    known.answered(peer(1))
    known.failed(peer(1))
    known.failed(peer(2))
    assert list(known) == []
    assert known.nearest(TOP, 5) == []


def test_we_are_not_in_our_own_table() -> None:
    known, _ = table()
    assert known.answered(Contact(0, "me")) is None
    assert len(known) == 0


def test_one_group_takes_a_bucket_only_while_nobody_else_wants_it() -> None:
    known, clock = table()
    for number in range(1000):
        known.answered(peer(number), "attacker")
    for number in range(2000, 2040):
        clock.now += 1
        known.answered(peer(number), f"group {number}")
    groups = Counter(member.group for member in known)
    assert len(known) == BUCKET_SIZE
    assert max(groups.values()) <= 2
    assert groups["attacker"] <= 2
    for number in range(3000, 4000):
        known.answered(peer(number), "attacker")
    assert Counter(member.group for member in known)["attacker"] <= 2


def test_few_of_a_group_are_named_while_there_are_others() -> None:
    known, _ = table()
    for number in range(12):
        known.answered(peer(number), "near")
    for number in range(100, 105):
        known.answered(peer(number), f"group {number}")
    others = [peer(number) for number in range(100, 105)]
    assert known.nearest(TOP, 6) == [peer(0), *others]
    assert known.nearest(TOP, 20) == [*(peer(number) for number in range(5)), *others]
    assert known.nearest(TOP, 1, exclude=peer(0)) == [peer(1)]


def test_a_swarm_of_one_group_is_named_whole() -> None:
    known, _ = table()
    for number in range(10):
        known.answered(peer(number), "loopback")
    assert known.nearest(TOP, 10) == [peer(number) for number in range(10)]


def test_those_of_unknown_place_are_few_among_others_and_bound_nobody() -> None:
    known, _ = table()
    for number in range(10):
        known.answered(peer(number), "")
    for number in range(10, 20):
        known.answered(peer(number), "loopback")
    assert len(known.nearest(TOP, 20)) == 20
    known.failed(peer(19))
    known.answered(peer(50), "elsewhere")
    assert known.nearest(TOP, 6) == [*(peer(number) for number in range(4)), peer(10), peer(50)]


def test_the_unheard_are_told_by_age() -> None:
    known, clock = table()
    for number in range(5):
        clock.now = number * 10.0
        known.answered(peer(number))
    clock.now = 70.0
    assert known.unheard(45.0, 2) == [peer(0), peer(1)]
    assert known.unheard(45.0, 9) == [peer(0), peer(1), peer(2)]


@given(st.lists(st.tuples(st.integers(0, 2**160 - 1), st.integers(0, 4), st.booleans()), max_size=300))
def test_bounds_hold_whatever_comes(events: list[tuple[int, int, bool]]) -> None:
    own = random.Random(1).getrandbits(160)
    known = RoutingTable(own, lambda: 0.0)
    for node_id, group, failed in events:
        contact = Contact(node_id, str(node_id))
        if failed:
            known.failed(contact)
        else:
            known.answered(contact, str(group))
    for bucket in known._buckets.values():
        assert len(bucket.members) <= BUCKET_SIZE
        assert len(bucket.waiting) <= WAITING
        assert not bucket.members.keys() & bucket.waiting.keys()
    named = known.nearest(own, 20)
    assert named == sorted(named, key=lambda contact: contact.node_id ^ own)
    assert len(named) >= min(10, len(known))
