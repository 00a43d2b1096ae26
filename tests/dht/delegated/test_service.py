"""The service for light peers and the directory that asks it, over an in-memory network."""

from __future__ import annotations

import asyncio
import os
import random
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.dht.address_book import AddressBook
from swarm_node.dht.delegated import service as delegated_service
from swarm_node.dht.delegated import side_by_side, sources
from swarm_node.dht.delegated.directory import ASKED, DelegatedDirectory
from swarm_node.dht.delegated.messages import (
    DELEGATED_MESSAGES,
    DELEGATED_PROTOCOL,
    MAX_FRAME,
    MAX_PAYLOAD,
    Entries,
    Get,
    PackedEntry,
    Put,
    Slower,
    Stored,
    pack_entries,
    unpack_entries,
)
from swarm_node.dht.delegated.service import DelegatedService
from swarm_node.dht.records.bodies import encode_node
from swarm_node.dht.records.entry_check import Entry, EntryCheck
from swarm_node.dht.records.envelope import seal, subkey_of
from swarm_node.dht.records.keys import key_hash, node_key
from swarm_node.swarm.errors import NetworkError, PeerUnreachableError, RemoteProtocolError, UsageError
from swarm_node.swarm.fairness.gate import GateLimits
from swarm_node.swarm.fairness.shares import ShareLimits
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.links.message_stream import MessageStream
from swarm_node.swarm.membership.membership import NamedSwarm
from swarm_node.swarm.placement.demand import WantedModel
from swarm_node.swarm.transport.interface import Stream
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span
from tests.dht.found import FoundEntries
from tests.doubles.clock import Clock

MODEL = ModelRef("smol", "ab" * 32, 30)
NOW, TTL = 1_700_000_000.0, 60.0
READER = Identity(b"r" * 32)
NODES = [Identity(bytes([index + 1]) * 32) for index in range(6)]


class Store:
    """The DHT as one dictionary: the later of two entries stays."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Entry]] = {}
        self.lookups = 0
        self.is_alone = False

    async def entries(self, keys: Sequence[str]) -> FoundEntries:
        self.lookups += 1
        return FoundEntries({key: dict(self.kept.get(key, {})) for key in keys}, self.is_alone)

    async def store(self, owner: str, key: str, expiration: float, value: bytes) -> NetworkError | None:
        entry = EntryCheck(1e9, lambda: NOW).check(
            key_hash(key), subkey_of(owner.encode()), expiration, value
        )
        before = self.kept.setdefault(key, {}).get(owner)
        if before is not None and before.expiration >= expiration:
            return NetworkError("there is a newer one")
        self.kept[key][owner] = entry
        return None


def info(identity: Identity, span: Span, state: NodeState = NodeState.ONLINE) -> NodeInfo:
    where = (f"/ip4/192.0.2.1/tcp/1/p2p/{identity.peer_id}",)
    return NodeInfo(identity.peer_id, where, MODEL, span, state, 0.5)


def entry(identity: Identity, span: Span, life: float = TTL) -> tuple[str, Entry]:
    key, body = node_key(MODEL, span), encode_node(info(identity, span))
    value = seal(identity, key_hash(key), NOW + life, body)
    return key, Entry(identity.peer_id, NOW + life, body, value)


class Swarm:
    """Full nodes that share one store, and whoever else is made."""

    def __init__(self, nodes: int = 3) -> None:
        self.network = MemoryNetwork()
        self.clock = Clock(NOW)
        self.store = Store()
        self.full = NODES[:nodes]
        self.services: list[DelegatedService] = []

    async def open(self) -> Swarm:
        for identity in self.full:
            service = DelegatedService(
                self.store, EntryCheck(TTL, self.clock), clock=self.clock, monotonic=self.clock
            )
            self.services.append(service)
            await self.network.transport(identity.peer_id).serve(DELEGATED_PROTOCOL, service.handle)
        return self

    def addresses(self) -> list[str]:
        return [f"/ip4/192.0.2.1/tcp/1/p2p/{identity.peer_id}" for identity in self.full]

    def put(self, identity: Identity, span: Span, life: float = TTL) -> None:
        key, made = entry(identity, span, life)
        self.store.kept.setdefault(key, {})[identity.peer_id] = made

    def directory(
        self, identity: Identity = READER, peers: Sequence[str] | None = None
    ) -> DelegatedDirectory:
        return DelegatedDirectory(
            self.network.transport(identity.peer_id),
            identity,
            self.addresses() if peers is None else peers,
            TTL,
            self.clock,
            rng=random.Random(1),
        )

    async def lie(
        self, identity: Identity, answer: Callable[[MessageStream[object], Get], Awaitable[None]]
    ) -> None:
        async def handle(stream: Stream) -> None:
            messages: MessageStream[object] = MessageStream(stream, DELEGATED_MESSAGES, MAX_FRAME)
            request = await messages.receive()
            assert isinstance(request, Get)
            await answer(messages, request)

        await self.network.transport(identity.peer_id).serve(DELEGATED_PROTOCOL, handle)


def spans(nodes: Sequence[NodeInfo]) -> dict[str, Span]:
    return {node.peer_id: node.span for node in nodes}


async def test_a_light_node_is_announced_and_found_and_leaves() -> None:
    swarm = await Swarm().open()
    light, reader = swarm.directory(NODES[5]), swarm.directory()
    assert await reader.models() == []
    await light.announce(info(NODES[5], Span(0, 12)))
    assert spans(await reader.nodes(MODEL)) == {NODES[5].peer_id: Span(0, 12)}
    assert await reader.models() == [MODEL]
    swarm.clock.now += 10
    await light.announce(info(NODES[5], Span(16, 30)))  # it moved to another key
    assert spans(await reader.nodes(MODEL)) == {NODES[5].peer_id: Span(16, 30)}
    await light.want([WantedModel("bigger")])
    swarm.clock.now += 2
    assert [record.peer_id for record in await reader.wanted()] == [NODES[5].peer_id]
    swarm.clock.now += 2
    await light.withdraw()
    assert await reader.nodes(MODEL) == await reader.wanted() == []


async def test_a_reader_hears_whether_those_that_answer_reach_others() -> None:
    swarm = await Swarm(2).open()
    asked, other = swarm.services[0], Store()
    swarm.store.is_alone = True
    reader = swarm.directory()
    assert await reader.nodes(MODEL) == []
    assert reader.is_alone
    swarm.put(NODES[3], Span(0, 10))  # it found the others; its clock stands still
    swarm.store.is_alone = False
    assert spans(await reader.nodes(MODEL)) == {NODES[3].peer_id: Span(0, 10)}
    assert not reader.is_alone
    other.is_alone = True
    asked._store = other
    swarm.clock.now += 2
    assert len(await reader.nodes(MODEL)) == 1
    assert not reader.is_alone, "one of the two reaches others"


async def test_entries_expire_and_are_never_prolonged_by_others() -> None:
    swarm = await Swarm().open()
    swarm.put(NODES[3], Span(0, 10), life=30)
    reader = swarm.directory()
    assert len(await reader.nodes(MODEL)) == 1
    swarm.clock.now += 31
    assert await reader.nodes(MODEL) == []


async def test_a_liar_hides_nobody_and_invents_nobody() -> None:
    swarm = await Swarm(4).open()
    honest, liar = Span(0, 10), swarm.full[0]
    swarm.put(NODES[4], honest)
    swarm.put(NODES[5], honest)
    key, good = entry(NODES[4], honest)

    async def deceive(stream: MessageStream[object], request: Get) -> None:
        index = request.keys.index(key)
        stranger = Identity(b"x" * 32)
        forged = seal(stranger, key_hash(key), NOW + TTL, encode_node(info(NODES[2], Span(0, 30))))
        elsewhere = seal(NODES[3], key_hash("swarm-node/other"), NOW + TTL, good.body)
        altered = good.value[:-1] + bytes([good.value[-1] ^ 1])
        lies = [
            PackedEntry(index, NOW + TTL, NODES[2].peer_id.encode(), forged),  # under another's name
            PackedEntry(index, NOW + TTL + 5, good.owner.encode(), good.value),  # prolonged
            PackedEntry(index, NOW + TTL, NODES[3].peer_id.encode(), elsewhere),  # of another key
            PackedEntry(index, NOW + TTL, good.owner.encode(), altered),
            PackedEntry(index, NOW + TTL, b"\xff" * 52, good.value),
            PackedEntry(index, float("nan"), good.owner.encode(), good.value),
            PackedEntry(index, NOW + 1e9, NODES[3].peer_id.encode(), b"plain"),
        ]
        for payload in pack_entries(lies):  # and nothing of NODES[4] and NODES[5]
            await stream.send(Entries(NOW, True, payload))

    await swarm.lie(liar, deceive)
    found = await swarm.directory().nodes(MODEL)
    assert spans(found) == {NODES[4].peer_id: honest, NODES[5].peer_id: honest}


@pytest.mark.parametrize("how", ["garbage", "endless", "silent", "another message", "closes", "wrong index"])
async def test_who_answers_badly_costs_only_his_answer(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "HEDGE_S", 0.05)
    monkeypatch.setattr(side_by_side, "REST_S", 0.05)
    swarm = await Swarm(2).open()
    swarm.put(NODES[4], Span(0, 10))

    async def answer(stream: MessageStream[object], request: Get) -> None:
        match how:
            case "garbage":
                stream.stream.write([os.urandom(500)])
            case "endless":
                while True:
                    await stream.send(Entries(NOW, False, next(pack_entries([]))))
                    await asyncio.sleep(0)
            case "silent":
                await asyncio.Event().wait()
            case "another message":
                await stream.send(Stored())
            case "wrong index":
                packed = PackedEntry(9, NOW + 1, b"o" * 52, b"")
                await stream.send(Entries(NOW, True, next(pack_entries([packed]))))

    asked = 0

    async def counted(stream: MessageStream[object], request: Get) -> None:
        nonlocal asked
        asked += 1
        await answer(stream, request)

    await swarm.lie(swarm.full[0], counted)
    reader = swarm.directory()
    for _ in range(3):
        assert spans(await reader.nodes(MODEL)) == {NODES[4].peer_id: Span(0, 10)}
    assert asked == 1  # and is left alone
    swarm.clock.now += sources.MUTE_S
    await reader.models()
    assert asked == 2


async def test_nodes_that_were_found_are_asked_too() -> None:
    swarm = await Swarm(3).open()
    for identity in swarm.full:
        swarm.put(identity, Span(0, 10))
    reader = swarm.directory(peers=swarm.addresses()[:1])
    assert len(await reader.nodes(MODEL)) == 3
    assert [len(service._keys_of_peer) for service in swarm.services[1:]] == [0, 0]
    await reader.nodes(MODEL)
    assert [len(service._keys_of_peer) for service in swarm.services] == [1, 1, 1]
    swarm.network.kill(swarm.full[0].peer_id)  # the one it began with
    assert len(await reader.nodes(MODEL)) == 3


async def test_nobody_to_ask_is_an_error_that_says_what_to_do() -> None:
    swarm = await Swarm(2).open()
    for identity in swarm.full:
        swarm.network.kill(identity.peer_id)
    with pytest.raises(PeerUnreachableError, match="no peer answers at /ip4/192") as caught:
        await swarm.directory().models()
    assert "Check that the nodes there run" in caught.value.hint
    with pytest.raises(UsageError, match="is not a multiaddress"):
        swarm.directory(peers=["nonsense"])
    closed = swarm.directory()
    await closed.close()
    with pytest.raises(NetworkError, match="the directory is closed"):
        await closed.models()


async def test_a_clock_that_is_wrong_is_told() -> None:
    swarm = await Swarm(2).open()
    reader = swarm.directory()
    reader._clock = lambda: NOW + 7
    with pytest.raises(NetworkError, match=r"clock is 7\.0 s ahead of") as caught:
        await reader.models()
    assert "NTP" in caught.value.hint


async def test_who_is_found_later_is_met() -> None:
    swarm = await Swarm(1).open()
    reader = swarm.directory(peers=[])
    assert not await reader.meet(NODES[5].peer_id, ["/ip4/192.0.2.1/tcp/1"])
    assert not await reader.meet(READER.peer_id, ["/ip4/192.0.2.1/tcp/1"])
    assert await reader.meet(swarm.full[0].peer_id, ["/ip4/192.0.2.1/tcp/1"])
    assert await reader.models() == []
    reader.forget(swarm.full[0].peer_id)
    with pytest.raises(PeerUnreachableError, match="no node of the swarm is known"):
        await reader.models()


async def test_entries_of_another_swarm_do_not_count() -> None:
    swarm = await Swarm(1).open()
    swarm.put(NODES[4], Span(0, 10))
    other = DelegatedDirectory(
        swarm.network.transport(READER.peer_id),
        READER,
        swarm.addresses(),
        TTL,
        swarm.clock,
        NamedSwarm("other"),
    )
    assert await other.nodes(MODEL) == []


# The service's own bounds.


async def talk(swarm: Swarm, identity: Identity = READER) -> MessageStream[object]:
    transport = swarm.network.transport(identity.peer_id)
    stream = await transport.open_stream(swarm.full[0].peer_id, DELEGATED_PROTOCOL)
    return MessageStream(stream, DELEGATED_MESSAGES, MAX_FRAME)


async def test_a_peer_stores_only_what_is_its_own_and_good() -> None:
    swarm = await Swarm(1).open()
    key, good = entry(READER, Span(0, 10))
    stream = await talk(swarm)

    async def put(request: Put) -> str:
        await stream.send(request)
        answer = await stream.receive()
        assert isinstance(answer, Stored)
        return answer.reason

    assert await put(Put(key, good.expiration, good.value)) == ""
    assert await put(Put(key, good.expiration, good.value)) == "there is a newer one"
    _, foreign = entry(NODES[4], Span(0, 10))
    assert "without a valid signature" in await put(Put(key, foreign.expiration, foreign.value))
    assert "without a valid signature" in await put(Put("swarm-node/else", good.expiration, good.value))
    assert "asked to keep an entry" in await put(Put(key, NOW + 1e6, good.value))
    assert "not msgpack" in await put(Put(key, good.expiration, b"\xc1"))
    assert "more than" in await put(Put(key, good.expiration, bytes(5000)))
    _, old = entry(READER, Span(0, 10), life=-1)
    assert "expired" in await put(Put(key, old.expiration, old.value))
    assert swarm.store.kept[key].keys() == {READER.peer_id}


async def test_who_asks_too_much_waits_alone() -> None:
    swarm = await Swarm(1).open()
    greedy, other = await talk(swarm), await talk(swarm, NODES[5])
    keys = tuple(f"swarm-node/1/models/{index}" for index in range(64))
    slower = None
    for _ in range(int(delegated_service.KEYS_AT_ONCE) // 64 + 1):
        await greedy.send(Get(keys))
        if isinstance(answer := await greedy.receive(), Slower):
            slower = answer
    assert slower is not None
    assert 0 < slower.retry_after_ms <= 64 / delegated_service.KEYS_PER_S * 1000 + 1
    await other.send(Get(keys))
    assert isinstance(await other.receive(), Entries)
    swarm.clock.now += slower.retry_after_ms / 1000
    await greedy.send(Get(keys))
    assert isinstance(await greedy.receive(), Entries)
    for number in range(int(delegated_service.PUTS_AT_ONCE) + 1):
        key = f"swarm-node/1/{number}"
        await greedy.send(Put(key, NOW + TTL, seal(READER, key_hash(key), NOW + TTL, b"")))
        told = await greedy.receive()
        assert isinstance(told, Stored) == (number < delegated_service.PUTS_AT_ONCE), number
    swarm.clock.now += 5
    await greedy.send(Put(key, NOW + TTL, seal(READER, key_hash(key), NOW + TTL, b"")))
    assert "may store entries under" in (await greedy.receive()).reason  # type: ignore[attr-defined]


async def test_the_dht_is_asked_once_for_many_readers() -> None:
    swarm = await Swarm(1).open()
    streams = [await talk(swarm, identity) for identity in NODES[1:6]]
    for stream in streams:
        await stream.send(Get(("swarm-node/1/models/0",)))
        await stream.receive()
    assert swarm.store.lookups == 1
    swarm.clock.now += delegated_service.FRESH_S
    await streams[0].send(Get(("swarm-node/1/models/0",)))
    await streams[0].receive()
    assert swarm.store.lookups == 2


async def test_a_peer_has_so_many_streams_and_no_more() -> None:
    swarm = await Swarm(1).open()
    streams = [await talk(swarm) for _ in range(int(delegated_service.STREAMS.per_peer) + 2)]
    await asyncio.sleep(0)
    ended = 0
    for stream in streams:
        try:
            await stream.send(Get(("swarm-node/1/models/0",)))
            await stream.receive()
        except NetworkError:
            ended += 1
    assert ended == 2
    for stream in streams:
        stream.close()
    await asyncio.sleep(0.01)
    assert not swarm.services[0]._streams
    assert not swarm.services[0]._shares.held


async def test_streams_and_room_are_divided_among_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delegated_service, "STREAMS", ShareLimits(total=8, per_peer=8))
    monkeypatch.setattr(delegated_service, "MAX_HELD", 8)
    swarm = await Swarm(1).open()
    sybils = [Identity(b"%032d" % number) for number in range(12)]
    swarm.network.hosts = {sybil.peer_id: "/ip4/192.0.2.7/tcp/1" for sybil in sybils}
    swarm.network.hosts[READER.peer_id] = "/ip4/198.51.100.7/tcp/1"

    async def put(stream: MessageStream[object], identity: Identity) -> str:
        key, made = entry(identity, Span(0, 10))
        await stream.send(Put(key, made.expiration, made.value))
        answer = await stream.receive()
        assert isinstance(answer, Stored)
        return answer.reason

    told = []
    for sybil in sybils:
        stream = await talk(swarm, sybil)
        told.append(await put(stream, sybil))
        stream.close()
        await asyncio.sleep(0)
    assert [reason.partition(" ")[0] for reason in told] == [""] * 8 + ["one"] * 4
    streams = [await talk(swarm, sybil) for sybil in sybils]
    await asyncio.sleep(0)
    assert swarm.services[0]._shares.held == 8
    honest = await talk(swarm)
    assert await put(honest, READER) == ""
    assert await put(await talk(swarm, READER), READER) == "there is a newer one"
    for stream in [*streams, honest]:
        stream.close()


async def test_what_all_ask_together_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = GateLimits(1e-6, 2, 1e-6, 2, waiting=1, waiting_of_peer=1, patience_s=0.001)
    monkeypatch.setattr(delegated_service, "LOOKUPS", limits)
    swarm = await Swarm(1).open()
    stream = await talk(swarm)
    for keys, answer in (("a", Entries), ("a", Entries), ("b", Entries), ("c", Slower), ("a", Entries)):
        await stream.send(Get((f"swarm-node/1/{keys}",)))
        assert isinstance(await stream.receive(), answer)


async def test_bytes_that_are_no_request_end_the_stream_alone() -> None:
    swarm = await Swarm(1).open()
    for noise in (
        os.urandom(200),
        b"SW\x01\x00\x00\x01\x00\x00\x00\x00\x80",
        struct.pack("!2sBBHI", b"SW", 1, 0, 1, 2**31),
    ):
        stream = await talk(swarm)
        stream.stream.write([noise])
        with pytest.raises(NetworkError):
            await stream.receive()
    good = await talk(swarm)
    await good.send(Get(("swarm-node/1/models/0",)))
    assert isinstance(await good.receive(), Entries)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4096)), max_size=200))
def test_entries_survive_packing(shape: list[tuple[int, int]]) -> None:
    packed = [PackedEntry(key, float(size), b"p" * 52, bytes(size)) for key, size in shape]
    payloads = list(pack_entries(packed))
    assert all(len(payload) <= MAX_PAYLOAD for payload in payloads)
    keys = ["a", "b", "c", "d"]
    assert [each for payload in payloads for each in unpack_entries(keys, payload)] == packed


@given(st.binary(max_size=300))
def test_any_payload_is_entries_or_an_error(payload: bytes) -> None:
    try:
        for each in unpack_entries(["a"], payload):
            assert each.key == 0
    except RemoteProtocolError:
        pass


def test_more_nodes_than_one_frame_holds() -> None:
    entries = [entry(Identity(index.to_bytes(32)), Span(0, 1))[1] for index in range(3)]
    many = [PackedEntry(0, made.expiration, made.owner.encode(), made.value) for made in entries] * 400
    payloads = list(pack_entries(many))
    assert len(payloads) > 1
    assert len([1 for payload in payloads for _ in unpack_entries(["k"], payload)]) == 1200
    assert replace(many[0], key=1) != many[0]
    assert ASKED == 3


async def test_who_answered_before_is_asked_where_no_initial_peer_is(tmp_path: Path) -> None:
    swarm = await Swarm().open()
    for identity in swarm.full:
        swarm.put(identity, Span(0, 4))
    for initial in (swarm.addresses()[:1], [f"/ip4/192.0.2.9/tcp/1/p2p/{NODES[5].peer_id}"]):
        directory = DelegatedDirectory(
            swarm.network.transport(READER.peer_id),
            READER,
            initial,
            TTL,
            swarm.clock,
            rng=random.Random(1),
            book=AddressBook(tmp_path / "book.json", swarm.clock),
        )
        for _ in range(2):  # whom it was told of is asked the next time
            assert len(await directory.nodes(MODEL)) == len(swarm.full)
        await directory.close()
