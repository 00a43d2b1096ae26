"""Which of several models a name means: what one stranger can and cannot do to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.naming.model_choice import ENOUGH, Candidate, Reason, choose, in_order, needs_answers
from swarm_node.swarm.transport.address_groups import networks

PEER = "12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB"


def honest(identity: str, *, answer_from: list[str], nearness: int = 0) -> Candidate:
    count = len(answer_from)
    return Candidate(identity, nearness, count, count, networks(answer_from))


def in_networks(count: int) -> list[str]:
    return [f"/ip4/8.{number}.4.1/tcp/1" for number in range(count)]


def strangers(identities: int, digests: int, *, nearness: int = 0) -> list[Candidate]:
    """One machine of one network, on both families of IP, in its LAN and behind relays of others."""
    addresses = [
        *(f"/ip4/9.9.9.{number % 254 + 1}/tcp/1" for number in range(identities)),
        *(f"/ip6/2a00:1450:4001:{number:x}::1/tcp/1" for number in range(identities)),
        *(f"/ip4/192.168.1.{number % 254 + 1}/tcp/1" for number in range(identities)),
        *(f"/ip4/8.{number % 250}.8.8/tcp/1/p2p/{PEER}/p2p-circuit" for number in range(identities)),
        "/memory/stranger",
    ]
    count = networks(addresses)
    return [Candidate(f"lie {n}", nearness, identities, identities, count) for n in range(digests)]


def test_one_owner_of_one_network_counts_once() -> None:
    assert networks([]) == 0
    assert networks(["/memory/a", ""]) == 1
    assert strangers(500, 1)[0].networks == 1
    assert networks(in_networks(3)) == 3
    assert networks([*in_networks(2), "/ip6/2a00:1450:4001:81b::1/tcp/1", "/ip4/10.0.0.1/tcp/1"]) == 2


NEAR = st.integers(0, 3)
HONEST = st.lists(st.tuples(st.integers(0, 5), NEAR), max_size=4)


@given(HONEST, NEAR, st.integers(1, 20), st.integers(1, 500))
def test_one_stranger_never_gets_a_name_that_others_have(
    truths: list[tuple[int, int]], near: int, digests: int, identities: int
) -> None:
    """Whatever the honest are, however near the stranger's name, and though it was there first."""
    others = [honest(f"true {n}", answer_from=in_networks(k), nearness=d) for n, (k, d) in enumerate(truths)]
    lies = strangers(identities, digests, nearness=near)
    for order in (others + lies, lies + others):
        choice = choose(order)
        if truths and choice is not None:
            assert choice.taken.identity.startswith("true")
        elif digests > 1:
            assert choice is None


@given(st.integers(ENOUGH, 6), NEAR, NEAR, st.integers(1, 20), st.integers(1, 500))
def test_one_stranger_cannot_keep_anybody_from_what_two_networks_serve(
    count: int, near: int, lie_near: int, digests: int, identities: int
) -> None:
    truth = honest("true", answer_from=in_networks(count), nearness=near)
    choice = choose([*strangers(identities, digests, nearness=lie_near), truth])
    assert choice is not None
    assert choice.taken == truth
    assert choice.reason is Reason.NETWORKS
    assert len(choice.others) == digests


@given(HONEST.filter(bool), st.integers(0, 3), NEAR)
def test_one_network_more_never_turns_one_choice_into_another(
    truths: list[tuple[int, int]], helped: int, near: int
) -> None:
    """A stranger that serves what others do, too, can only make it a draw."""
    before = [honest(f"{n}", answer_from=in_networks(k), nearness=d) for n, (k, d) in enumerate(truths)]
    after = list(before)
    chosen = choose(before)
    after[helped % len(after)] = replace(
        (one := after[helped % len(after)]), networks=one.networks + 1, answered=one.answered + 1
    )
    now = choose(after)
    strong = [each for each in before if each.networks >= ENOUGH]
    if chosen is not None and chosen.reason is Reason.NETWORKS and now is not None and one in strong:
        assert now.taken.identity == chosen.taken.identity or one.nearness < chosen.taken.nearness


@given(HONEST, st.integers(0, 3), st.booleans())
def test_what_was_used_stays_while_it_is_announced(
    truths: list[tuple[int, int]], which: int, members: bool
) -> None:
    others = [honest(f"{n}", answer_from=in_networks(k), nearness=d) for n, (k, d) in enumerate(truths)]
    choice = choose([*strangers(9, 3), *others, Candidate("mine")], used="mine", members=members)
    assert choice is not None
    assert (choice.taken.identity, choice.reason, choice.before) == ("mine", Reason.USED, "")


def test_the_hub_comes_before_what_was_used() -> None:
    choice = choose([Candidate("used"), Candidate("hub")], used="used", hub="hub")
    assert choice is not None
    assert (choice.taken.identity, choice.reason) == ("hub", Reason.HUB)


def test_a_successor_of_what_was_used_needs_two_networks_or_a_member() -> None:
    one, two = honest("new", answer_from=in_networks(1)), honest("new", answer_from=in_networks(2))
    assert choose([one], used="old") is None
    assert choose([Candidate("new", nodes=500)], used="old") is None
    for choice in (choose([two], used="old"), choose([one], used="old", members=True)):
        assert choice is not None
        assert (choice.taken.identity, choice.before) == ("new", "old")
    assert choose([replace(one, answered=0)], used="old", members=True) is None


def test_what_nobody_answers_for_stands_in_nobodys_way() -> None:
    dead, living = Candidate("dead", nodes=3, is_silent=True), honest("new", answer_from=["/memory/a"])
    choice = choose([dead, living])
    assert choice is not None
    assert (choice.taken, choice.reason) == (living, Reason.ONLY)
    assert choose([replace(dead, is_silent=False), living]) is None, "not all of its nodes were asked"
    assert choose([dead, replace(living, identity="dead, too", is_silent=True)]) is None
    only = choose([dead])
    assert only is not None, "what it is when somebody comes back"


def test_members_count_one_by_one() -> None:
    """Each was let in by somebody: three machines of one house are more than one."""
    many = Candidate("many", nodes=3, answered=3, networks=1)
    few = Candidate("few", nodes=1, answered=1, networks=1)
    assert choose([many, few]) is None, "an open LAN: one machine takes as many names as it likes"
    choice = choose([few, many], members=True)
    assert choice is not None
    assert (choice.taken, choice.reason) == (many, Reason.MEMBERS)
    assert choose([many, replace(few, answered=3)], members=True) is None


def test_a_nearer_name_is_taken_where_it_is_not_one_network_alone() -> None:
    near = honest("near", answer_from=in_networks(2))
    far = honest("far", answer_from=in_networks(5), nearness=3)
    assert choose([far, near]).taken == near  # type: ignore[union-attr]
    assert choose([far, replace(near, networks=1)]).taken == far  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("names", "used", "asks"),
    [
        (["a"], "", False),
        (["a"], "a", False),
        (["a"], "b", True),
        (["a", "b"], "", True),
        (["a", "b"], "b", False),
        ([], "a", False),
    ],
)
def test_nobody_is_dialled_for_what_is_known(names: list[str], used: str, asks: bool) -> None:
    candidates = [Candidate(name) for name in names]
    assert needs_answers(candidates, used=used) is asks
    silent = [Candidate(name, is_silent=name == used) for name in names]
    assert needs_answers(silent, used=used) is (len(names) > 1 or asks or used in names)


def test_people_read_first_what_most_vouch_for() -> None:
    one, two = Candidate("a", answered=9, networks=1), Candidate("b", answered=2, networks=2)
    assert in_order([one, two]) == [two, one]
    assert in_order([one, two], members=True) == [one, two]
