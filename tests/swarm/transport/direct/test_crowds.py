from __future__ import annotations

from types import SimpleNamespace

from swarm_node.swarm.transport.address_groups import oldest_of_the_largest
from swarm_node.swarm.transport.direct.crowds import heaviest, loser_to

HOME, NET = "/ip4/9.9.9.9/tcp/1", "/ip4/8.8.8.{}/tcp/1"


def connection(maddr=HOME, *, in_use=False, heard_at=0.0, unread=0):
    return SimpleNamespace(remote_maddr=maddr, in_use=in_use, heard_at=heard_at, unread=unread)


def test_handshakes_of_the_largest_network_end_first():
    assert oldest_of_the_largest({"a": "home", "b": "net", "c": "net"}) == "b"


def test_a_connection_of_the_crowd_ends_for_who_comes_from_elsewhere():
    mine = connection(heard_at=0.0)
    crowd = [connection(NET.format(number), in_use=number > 2, heard_at=9.0 - number) for number in range(6)]
    assert loser_to(HOME, [mine, *crowd]) is crowd[2]  # not in use, and longest unheard
    assert loser_to(NET.format(9), [mine, *crowd]) is crowd[2]
    busy = crowd[3:]
    assert loser_to(HOME, [connection(in_use=True), *busy]) is busy[-1]
    assert loser_to(NET.format(9), [connection(in_use=True), *busy]) is None


def test_who_leaves_most_unread_is_of_the_network_that_does():
    crowd = [connection(NET.format(number), unread=10 + number) for number in range(5)]
    assert heaviest([connection(unread=40), *crowd], lambda each: each.unread) is crowd[4]
