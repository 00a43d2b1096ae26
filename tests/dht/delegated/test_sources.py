"""Whom a light peer or a client asks: initial peers first, others of other networks, silent ones last."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from swarm_node.dht.address_book import AddressBook
from swarm_node.dht.delegated.sources import FROM_BOOK, MAX_SOURCES, MOST_AT_START, MUTE_S, Sources
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.transport.address_groups import address_group
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span
from tests.doubles.clock import Clock

IDS = [Identity(index.to_bytes(32, "big")).peer_id for index in range(1, 100)]
NOBODY = Identity(bytes(32)).peer_id


def maddr(network: int, host: int = 1) -> str:
    return f"/ip4/8.8.{network}.{host}/tcp/1"


def node(number: int, network: int) -> NodeInfo:
    peer_id = IDS[number]
    where = (f"{maddr(network, number + 1)}/p2p/{peer_id}",)
    return NodeInfo(peer_id, where, ModelRef("m", "ab" * 32, 4), Span(0, 4), NodeState.ONLINE, 0.5)


def sources(initial: dict[int, int], clock: Clock | None = None, book: AddressBook | None = None) -> Sources:
    """``initial``: peers, by the number of their network."""
    clock = clock or Clock(0.0)
    addresses = [f"{maddr(network)}/p2p/{IDS[number]}" for number, network in initial.items()]
    kept = AddressBook(clock=clock) if book is None else book
    return Sources(NOBODY, addresses, kept, clock, random.Random(1))


@given(
    st.dictionaries(st.integers(0, 5), st.integers(0, 3), min_size=1),
    st.dictionaries(st.integers(6, 20), st.integers(0, 5)),
)
def test_an_initial_peer_then_other_networks(initial: dict[int, int], others: dict[int, int]) -> None:
    known = sources(initial)
    known.learn(node(number, network) for number, network in others.items())
    turn = known.in_turn(False)
    assert sorted(turn) == sorted(IDS[number] for number in initial | others)
    assert turn[0] in {IDS[number] for number in initial}
    networks = len(set((initial | others).values()))
    first = [address_group(known.maddrs(peer_id)[0]) for peer_id in turn[:networks]]
    assert len(set(first)) == networks


def test_who_did_not_answer_is_asked_where_nobody_else_answers() -> None:
    clock = Clock(0.0)
    known = sources({0: 0, 1: 1}, clock)
    known.failed(IDS[0])
    assert known.in_turn(False) == [IDS[1]]
    known.failed(IDS[1])
    assert known.in_turn(True) == []
    assert sorted(known.in_turn(False)) == sorted(IDS[:2])
    known.answered(IDS[0])
    assert known.in_turn(True) == [IDS[0]]
    clock.now += MUTE_S
    assert sorted(known.in_turn(True)) == sorted(IDS[:2])


def test_at_the_start_all_initial_peers_are_asked_and_a_few_of_the_book() -> None:
    book = AddressBook(clock=Clock(0.0))
    for number in range(20, 30):
        book.answered(IDS[number], [maddr(number)])
    known = sources({0: 0, 1: 0}, book=book)
    asked = known.at_start()
    assert sorted(asked[:2]) == sorted(IDS[:2])
    assert len(asked) == 2 + FROM_BOOK
    assert len(sources({number: number for number in range(20)}, book=book).at_start()) == MOST_AT_START


def test_nodes_that_are_gone_make_room_for_new_ones() -> None:
    known = sources({0: 0})
    known.learn(node(number, number) for number in range(1, 99))
    assert len(known) == 1 + MAX_SOURCES
    known.learn([node(98, 98)])
    assert IDS[98] not in known.in_turn(False)
    known.failed(IDS[5])
    known.learn([node(98, 98)])
    assert len(known) == 1 + MAX_SOURCES
    assert IDS[98] in known.in_turn(False)


def test_we_never_ask_ourselves() -> None:
    known = sources({0: 0})
    known.learn([replace(node(1, 1), peer_id=NOBODY)])
    known.add([f"{maddr(1)}/p2p/{NOBODY}"])
    assert known.in_turn(False) == [IDS[0]]


def test_who_needs_a_daemon_is_asked_where_nobody_else_answers() -> None:
    known = sources({0: 0})
    quic, relayed = "/ip4/8.8.4.4/udp/1/quic-v1", f"/ip4/8.8.4.4/udp/1/quic-v1/p2p/{IDS[9]}/p2p-circuit"
    known.learn([node(1, 1), replace(node(2, 2), maddrs=(quic,)), replace(node(3, 3), maddrs=(relayed,))])
    known.learn([replace(node(4, 4), maddrs=(quic, "/ip4/127.0.0.1/tcp/22"))])  # which nobody dials there
    known.learn([replace(node(5, 5), maddrs=(quic,), direct_maddrs=(f"{maddr(5)}/direct",))])
    assert sorted(known.in_turn(False)) == sorted([IDS[0], IDS[1], IDS[5]])
    assert sorted(known.by_daemon()) == sorted(IDS[2:5])
    for number in (0, 1, 5):
        known.failed(IDS[number])
    assert sorted(known.in_turn(False)) == sorted([IDS[0], IDS[1], IDS[5]])
    assert known.in_turn(True) == []


def test_the_book_keeps_nothing_of_our_own_machine_that_a_stranger_announced() -> None:
    book = AddressBook(clock=Clock(0.0))
    known = sources({0: 0}, book=book)
    known.learn([replace(node(1, 1), maddrs=(maddr(1), "/ip4/127.0.0.1/tcp/22"))])
    known.answered(IDS[1])
    assert [peer.maddrs for peer in book.peers()] == [(maddr(1),)]
