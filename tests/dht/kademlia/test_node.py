"""A DHT node's calls, in memory: claimed ids count for nothing, and only who answers is known."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import deque
from collections.abc import Awaitable, Callable
from types import ModuleType, SimpleNamespace
from typing import TypeVar

import pytest
from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2

from scripts.lab.memory_dht import CallNetwork, JumpingLoop, MemoryP2P
from scripts.studies.directory_attack.liars import Crowd, Liar, invented
from swarm_node.dht.directory import ALONE_S
from swarm_node.dht.kademlia import peer_notes
from swarm_node.dht.kademlia.contacts import KEPT_CONTACTS, contact_of, id_bytes
from swarm_node.dht.kademlia.node import KademliaNode
from swarm_node.dht.kademlia.replicas import Replicas
from swarm_node.dht.records.entry_check import EntryCheck
from swarm_node.dht.records.kept_entries import KeptEntries
from swarm_node.swarm.identity import Identity, peer_id_of

T = TypeVar("T")


def simulated(test: Callable[[CallNetwork], Awaitable[T]]) -> T:
    async def started() -> T:
        return await test(CallNetwork(random.Random(1)))

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(started())


def name(number: int) -> str:
    return Identity(number.to_bytes(32)).peer_id


async def node_in(
    network: CallNetwork, number: int, client_mode: bool = False
) -> tuple[KademliaNode, MemoryP2P]:
    p2p = network.join(name(number), f"20.{number}.0.1")
    node = KademliaNode(
        p2p,
        KeptEntries(set(), clock=network.clock),
        EntryCheck(clock=network.clock),
        clock=network.clock,
        steady=network.steady,
        client_mode=client_mode,
    )
    await node.start()
    return node, p2p


@pytest.mark.parametrize("call", ["ping", "store", "find"])
def test_one_identity_has_one_id(call: str) -> None:
    """Sixty ids next to a key: not one of them is in the table, and the request gets an error."""

    async def test(network: CallNetwork) -> None:
        node, _ = await node_in(network, 1)
        intruder, p2p = await node_in(network, 2)
        types = {
            "ping": (dht_pb2.PingRequest, dht_pb2.PingResponse),
            "store": (dht_pb2.StoreRequest, dht_pb2.StoreResponse),
            "find": (dht_pb2.FindRequest, dht_pb2.FindResponse),
        }
        request_type, answer_type = types[call]
        for number in range(60):
            request = request_type(peer=dht_pb2.NodeInfo(node_id=id_bytes(node.contact.node_id ^ number)))
            with pytest.raises(PermissionError, match="not the hash of its PeerID"):
                await p2p.call_protobuf_handler(
                    PeerID(node.contact.raw), f"DHTProtocol.rpc_{call}", request, answer_type
                )
        await asyncio.sleep(10)
        assert len(node.table) == 0
        await intruder.ping(node.contact.peer_id)
        await asyncio.sleep(10)
        assert [member.contact for member in node.table] == [intruder.contact]

    simulated(test)


def test_clients_and_those_who_do_not_answer_are_in_nobodys_table() -> None:
    async def test(network: CallNetwork) -> None:
        node, _ = await node_in(network, 1)
        client, _ = await node_in(network, 2, client_mode=True)
        mute, _ = await node_in(network, 3)
        await mute.close()  # its handlers are gone, but it calls
        for caller in (client, mute):
            await caller.ping(node.contact.peer_id)
        await asyncio.sleep(10)
        assert len(node.table) == 0
        assert node.contact in client.table

    simulated(test)


def test_who_goes_leaves_the_table() -> None:
    async def test(network: CallNetwork) -> None:
        (node, _), (other, _) = await node_in(network, 1), await node_in(network, 2)
        await node.ping(other.contact.peer_id)
        assert other.contact in node.table
        network.leave(other.contact.peer_id)
        await asyncio.sleep(100)
        await node.refresh(5.0)
        assert len(node.table) == 0
        assert node.notes.is_silent(other.contact.peer_id)

    simulated(test)


def test_one_that_hears_nobody_for_long_is_believed() -> None:
    async def test(network: CallNetwork) -> None:
        (node, _), (other, _) = await node_in(network, 1), await node_in(network, 2)
        replicas = Replicas(node, network.clock)
        assert (await replicas.lookup(["key"])).is_alone
        await asyncio.sleep(ALONE_S)
        assert not (await replicas.lookup(["key"])).is_alone
        await other.ping(node.contact.peer_id)  # whom it asks in return
        await asyncio.sleep(1)
        assert not (await replicas.lookup(["key"])).is_alone
        network.leave(other.contact.peer_id)
        assert (await replicas.lookup(["key"])).is_alone
        await asyncio.sleep(ALONE_S)
        assert not (await replicas.lookup(["key"])).is_alone

    simulated(test)


def test_one_that_lost_everybody_for_a_moment_asks_them_again() -> None:
    async def test(network: CallNetwork) -> None:
        (node, _), (other, _) = await node_in(network, 1), await node_in(network, 2)
        await node.ping(other.contact.peer_id)
        stalled = network.handlers[other.contact.peer_id]
        network.leave(other.contact.peer_id)
        await node.meet_nearest(1, limit_s=5.0)
        assert len(node.table) == 0
        network.handlers[other.contact.peer_id] = stalled
        calls = network.calls
        await node.meet_nearest(1, limit_s=5.0)
        assert network.calls == calls, "not so soon"
        await asyncio.sleep(peer_notes.SILENT_S)
        await node.meet_nearest(1, limit_s=5.0)
        assert other.contact in node.table

    simulated(test)


@pytest.mark.parametrize("kind", ["junk", "inventions", "silence"])
def test_liars_are_noted(kind: str) -> None:
    async def test(network: CallNetwork) -> None:
        node, _ = await node_in(network, 1)
        contact = contact_of(name(9))
        liar = Liar(network, contact, "30.0.0.1", kind, Crowd(invented(network.rng, 50)))
        await liar.start()
        await node.ping(contact.peer_id)
        start = network.steady()
        await node.meet_nearest(node.contact.node_id, limit_s=5.0)
        assert network.steady() - start < 3.0
        await asyncio.sleep(3)
        if kind == "silence":
            assert node.notes.is_silent(contact.peer_id)
            assert len(node.table) == 0
        else:
            assert node.notes.is_distrusted(contact.peer_id)

    simulated(test)


def largest(start: object) -> int:
    """The length of the longest dictionary, set or list that an object holds, through any others of ours."""
    seen, left, longest = set(), [start], 0
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(
            each, CallNetwork | MemoryP2P | type | ModuleType | asyncio.AbstractEventLoop
        ):
            continue
        seen.add(id(each))
        if isinstance(each, dict | set | list | deque):
            longest = max(longest, len(each))
        left += gc.get_referents(each) if not callable(each) else []
    return longest


def test_invented_ids_leave_nothing_but_what_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each calls, is asked in return, and names more that are none."""
    monkeypatch.setattr(peer_notes, "MAX_NOTES", 256)

    async def test(network: CallNetwork) -> None:
        node, _ = await node_in(network, 1)
        for number in range(3000):
            caller = contact_of(peer_id_of(number.to_bytes(32)))
            info = dht_pb2.NodeInfo(node_id=id_bytes(caller.node_id))
            context = SimpleNamespace(remote_id=caller.peer_id)
            await node._on_ping(dht_pb2.PingRequest(peer=info), context)
            await node._on_find(dht_pb2.FindRequest(keys=[id_bytes(number)], peer=info), context)
            node.notes.lied(caller.peer_id)
            node.table.answered(caller, f"20.{number % 500}")
        await asyncio.sleep(60)
        assert 100 < len(node.table) < 400
        assert largest(node) <= 256

    simulated(test)
    assert contact_of.cache_info().currsize <= KEPT_CONTACTS
