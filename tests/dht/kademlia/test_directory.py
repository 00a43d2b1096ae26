"""The directory over real DHT nodes, each with its own p2pd on 127.0.0.1."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgpack
import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.p2p import PeerID
from hivemind.utils.timed_storage import ValueWithExpiration

from swarm_node.dht.address_book import AddressBook
from swarm_node.dht.directory import TTL_S
from swarm_node.dht.joining.network import connect_in
from swarm_node.dht.kademlia.contacts import Contact, contact_of
from swarm_node.dht.kademlia.directory import HivemindDirectory
from swarm_node.dht.kademlia.node import FindReply, KademliaNode
from swarm_node.dht.records.bodies import encode_model, encode_node
from swarm_node.dht.records.envelope import seal
from swarm_node.dht.records.kept_entries import Kept
from swarm_node.dht.records.keys import MAX_ENTRIES, key_hash, model_key, node_key
from swarm_node.swarm.errors import LocalProtocolError, NetworkError, PeerUnreachableError, UsageError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.transport.p2pd.transport import P2pdTransport
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

pytestmark = pytest.mark.swarm

MODEL = ModelRef("smol", "ab" * 32, 48)
KEY = node_key(MODEL, Span(0, 10))
KEY_ID = DHTID.from_bytes(key_hash(KEY))


class Clock:
    """The real clock, which hivemind's storage uses as well, moved by ``offset`` seconds."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    def __call__(self) -> float:
        return time.time() + self.offset


@dataclass
class Peer:
    identity: Identity
    transport: P2pdTransport
    directory: HivemindDirectory
    maddrs: tuple[str, ...]
    clock: Clock

    @property
    def dht(self) -> KademliaNode:
        return self.directory._node

    def info(self, span: Span = Span(0, 10), model: ModelRef = MODEL) -> NodeInfo:  # noqa: B008  frozen
        return NodeInfo(self.identity.peer_id, self.maddrs, model, span, NodeState.ONLINE, 0.5)


def kept(peer: Peer) -> Mapping[str, Kept]:
    """What a node keeps under KEY."""
    return peer.dht.stores.kept.entries(key_hash(KEY))


class Swarm:
    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self._closers: list[Callable[[], Awaitable[object]]] = []

    async def transport(self, identity: Identity, initial: Sequence[str], port: int = 0) -> P2pdTransport:
        transport = await P2pdTransport.create(
            identity, host_maddrs=(f"/ip4/127.0.0.1/tcp/{port}",), initial_peers=initial
        )
        self._closers.append(transport.close)
        return transport

    async def peer(
        self,
        *,
        identity: Identity | None = None,
        client_mode: bool = False,
        ttl: float = TTL_S,
        offset: float = 0.0,
        port: int = 0,
        ping_interval: float = 15.0,
    ) -> Peer:
        identity = identity or Identity.generate()
        initial = self.peers[0].maddrs if self.peers else ()
        transport = await self.transport(identity, initial, port)
        clock = Clock(offset)
        directory = await HivemindDirectory.create(
            transport,
            identity,
            initial,
            client_mode=client_mode,
            ttl=ttl,
            clock=clock,
            ping_interval=ping_interval,
        )
        self._closers.append(directory.close)
        peer = Peer(identity, transport, directory, await transport.maddrs(), clock)
        self.peers.append(peer)
        return peer

    async def intruder(self) -> DHTNode:
        """A DHT node that validates nothing."""
        transport = await self.transport(Identity.generate(), self.peers[0].maddrs)
        node = await DHTNode.create(
            p2p=transport.p2p,
            node_id=DHTID(contact_of(transport.peer_id).node_id),
            initial_peers=self.peers[0].maddrs,
            cache_nearest=0,
        )
        self._closers.append(node.shutdown)
        return node

    async def close(self) -> None:
        for close in reversed(self._closers):
            await close()


@pytest.fixture
async def swarm() -> AsyncIterator[Swarm]:
    made = Swarm()
    yield made
    await made.close()


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> float:
    """Seconds until ``condition`` holds."""
    start = time.monotonic()
    while not await condition():
        assert time.monotonic() - start < seconds, "it never happened"
        await asyncio.sleep(0.05)
    return time.monotonic() - start


async def test_everybody_sees_announcements_and_withdrawals_at_once(swarm: Swarm) -> None:
    first, second, third = [await swarm.peer() for _ in range(3)]
    reader = await swarm.peer(client_mode=True)
    assert str(PeerID.from_base58(first.identity.peer_id)) == str(first.transport.p2p.peer_id)
    assert await reader.directory.models() == []

    second_info = second.info(Span(10, 30))
    await asyncio.gather(
        first.directory.announce(first.info()),
        second.directory.announce(second_info),
        third.directory.announce(third.info(Span(30, 48))),
    )
    expected = [first.info(), second_info, third.info(Span(30, 48))]
    for peer in swarm.peers:
        assert await peer.directory.nodes(MODEL) == expected
        assert await peer.directory.models() == [MODEL]
        assert await peer.directory.all_nodes() == expected

    draining = dataclasses.replace(second_info, state=NodeState.DRAINING)
    await second.directory.announce(draining)
    assert (await reader.directory.nodes(MODEL))[1] == draining

    await second.directory.announce(second.info(Span(40, 48)))  # another group of blocks: another key
    assert [info.span for info in await reader.directory.nodes(MODEL)] == [
        Span(0, 10),
        Span(30, 48),
        Span(40, 48),
    ]

    await first.directory.withdraw()
    await first.directory.withdraw()
    assert [info.span for info in await reader.directory.nodes(MODEL)] == [Span(30, 48), Span(40, 48)]
    await first.directory.announce(first.info())
    assert len(await reader.directory.nodes(MODEL)) == 3


async def test_an_answer_of_one_node_that_reaches_no_other_is_told_from_that_of_several(swarm: Swarm) -> None:
    first, reader = await swarm.peer(), await swarm.peer(client_mode=True)

    async def reaches_others(peer: Peer) -> bool:
        assert await peer.directory.nodes(MODEL) == []
        return not peer.directory.is_alone

    assert [await reaches_others(peer) for peer in (first, reader)] == [False, False]
    await swarm.peer()
    for peer in (first, reader):  # a newcomer is asked before it is named
        await until(lambda peer=peer: reaches_others(peer))  # type: ignore[misc]


async def test_models_of_one_name_are_told_apart(swarm: Swarm) -> None:
    first, second = await swarm.peer(), await swarm.peer()
    other = dataclasses.replace(MODEL, digest="cd" * 32)
    await first.directory.announce(first.info())
    await second.directory.announce(second.info(model=other))
    assert await first.directory.models() == [MODEL, other]
    assert [info.peer_id for info in await first.directory.nodes(other)] == [second.identity.peer_id]
    assert len(await second.directory.all_nodes()) == 2
    await second.directory.withdraw()
    assert await first.directory.models() == [MODEL]


async def test_one_node_announces_only_itself(swarm: Swarm) -> None:
    peer = await swarm.peer()
    with pytest.raises(LocalProtocolError):
        await peer.directory.announce(dataclasses.replace(peer.info(), peer_id=Identity.generate().peer_id))


async def test_attacks_are_refused_and_lock_nobody_out(swarm: Swarm) -> None:
    owner, reader = await swarm.peer(), await swarm.peer()
    await owner.directory.announce(owner.info())
    intruder = await swarm.intruder()
    thief = Identity.generate()
    me, now = owner.identity.peer_id, time.time()
    body = encode_node(dataclasses.replace(owner.info(), state=NodeState.DRAINING))
    key = key_hash(KEY)

    def forged(expiration: float, signer: Identity = thief) -> bytes:
        return seal(signer, key, expiration, body)

    poisoned = DictionaryDHTValue()
    poisoned.store(me, forged(now + 65), now + 65)
    attacks: dict[str, tuple[object, float, object]] = {  # value, expiration, subkey
        "plain value": (msgpack.packb("mine now"), now + 65, None),
        "plain value for ever": (msgpack.packb("mine now"), now + 1e9, None),
        "plain signed value": (forged(now + 65), now + 65, None),
        "whole dictionary": (poisoned, now + 65, None),
        "unsigned": (msgpack.packb([1, body, b""]), now + 65, me),
        "forged": (msgpack.packb([1, body, bytes(64)]), now + 65, me),
        "signed by another": (forged(now + 65), now + 65, me),
        "subkey that is no peer": (forged(now + 65), now + 65, "somebody"),
        "subkey of another type": (forged(now + 65), now + 65, 7),
        "prolonged": (kept(owner)[me].value, now + 65, me),
        "far expiration": (forged(now + 3600), now + 3600, thief.peer_id),
        "oversized": (msgpack.packb([1, bytes(20_000), bytes(64)]), now + 65, me),
    }
    for victim in swarm.peers:
        for what, (value, expiration, subkey) in attacks.items():
            for in_cache in (False, True):
                answer = await intruder.protocol.call_store(
                    PeerID.from_base58(victim.identity.peer_id),
                    [KEY_ID],
                    [value],
                    [expiration],
                    subkeys=[subkey],
                    in_cache=in_cache,
                )
                assert answer is not None, what
                assert list(answer) == [False], what
    # What the intruder itself keeps and tells is not believed either.
    assert await reader.directory.nodes(MODEL) == [owner.info()]
    await owner.directory.announce(dataclasses.replace(owner.info(), decode_ms_per_block=0.25))
    assert [info.decode_ms_per_block for info in await reader.directory.nodes(MODEL)] == [0.25]


async def test_lying_replica_hides_nothing(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = await swarm.peer()
    await owner.directory.announce(owner.info())
    reader = await swarm.peer(client_mode=True)
    intruder = await swarm.intruder()
    me, far = owner.identity.peer_id, time.time() + 1e9
    entry = kept(owner)[me]

    def dictionary(value: object, expiration: object, maxsize: object = None) -> DictionaryDHTValue:
        made = DictionaryDHTValue()
        made.data[me] = ValueWithExpiration(value, expiration)
        made.latest_expiration_time = far
        made.maxsize = float("inf") if maxsize is None else maxsize
        made.frozen = True
        return made

    lies: list[object] = [
        b"a plain value",
        dictionary(entry.value, far),
        dictionary(b"garbage", far),
        dictionary(7, far),
        dictionary(entry.value, "tomorrow"),
        dictionary(entry.value, entry.expiration, maxsize="many"),
        DictionaryDHTValue(),
    ]
    asked: list[str] = []
    find = reader.dht.find

    def asking(contact: Contact, key: bytes) -> Awaitable[FindReply | None]:
        asked.append(contact.peer_id)
        return find(contact, key)

    monkeypatch.setattr(reader.dht, "find", asking)

    async def was_lied_to() -> bool:
        """Whatever a busy machine makes of the liar's answers, nothing is hidden."""
        reader.dht.notes.forgive_silence()
        await intruder.protocol.call_ping(PeerID.from_base58(owner.identity.peer_id))
        asked.clear()
        start = time.monotonic()
        assert await reader.directory.nodes(MODEL) == [owner.info()]
        assert time.monotonic() - start < 3
        return str(intruder.peer_id) in asked

    for lie in lies:
        intruder.protocol.storage = DHTLocalStorage()
        super(DHTLocalStorage, intruder.protocol.storage).store(KEY_ID, lie, far)
        await until(was_lied_to)


async def test_signed_nonsense_is_skipped(swarm: Swarm) -> None:
    owner = await swarm.peer()
    await owner.directory.announce(owner.info())
    expiration = time.time() + 50
    models = model_key(MODEL.name)
    elsewhere = next(f"name {n}" for n in range(99) if model_key(f"name {n}") != models)
    liar = Identity.generate()
    moved = dataclasses.replace(owner.info(Span(20, 30)), peer_id=liar.peer_id, maddrs=())
    shorter = dataclasses.replace(moved, model=dataclasses.replace(MODEL, n_blocks=30), span=Span(0, 10))
    for key, body in [
        (KEY, b"nonsense"),
        (KEY, encode_model(MODEL)),
        (KEY, encode_node(moved)),  # its blocks belong under another key
        (KEY, encode_node(shorter)),  # the same digest, another number of blocks
        (models, encode_node(moved)),
        (models, encode_model(dataclasses.replace(MODEL, name=elsewhere))),
    ]:
        expiration += 1
        value = seal(liar, key_hash(key), expiration, body)
        assert owner.dht.stores.keep(key_hash(key), liar.peer_id, value, expiration)
        assert await owner.directory.all_nodes() == [owner.info()]
        assert await owner.directory.models() == [MODEL]


async def test_expired_announcement_disappears(swarm: Swarm) -> None:
    owner, reader = await swarm.peer(ttl=1.5), await swarm.peer(ttl=1.5)
    await owner.directory.announce(owner.info())
    assert len(await reader.directory.nodes(MODEL)) == 1

    async def gone() -> bool:
        return not await reader.directory.nodes(MODEL)

    assert await until(gone, 5) < 2.5
    assert not await reader.directory.models()
    assert not kept(reader)


async def test_reader_goes_by_its_own_clock(swarm: Swarm) -> None:
    owner, reader = await swarm.peer(), await swarm.peer()
    await owner.directory.announce(owner.info())
    reader.clock.offset = TTL_S - 2
    assert len(await reader.directory.nodes(MODEL)) == 1
    reader.clock.offset = TTL_S
    assert await reader.directory.nodes(MODEL) == []


async def test_restarted_bootstrap_is_found_again(swarm: Swarm, tmp_path: Path) -> None:
    key = tmp_path / "bootstrap.key"
    boot = await swarm.peer(identity=Identity.load_or_create(key))
    port = int(boot.maddrs[0].split("/")[4])
    node = await swarm.peer(ping_interval=0.1)
    await node.directory.announce(node.info())
    await boot.directory.close()
    await boot.transport.close()
    assert await node.directory.nodes(MODEL) == [node.info()]
    assert node.directory.clock_problem is None

    swarm.peers.clear()  # the new process knows nobody
    again = await swarm.peer(identity=Identity.load_or_create(key), port=port)
    assert again.maddrs == boot.maddrs

    async def known() -> bool:
        return await again.directory.nodes(MODEL) == [node.info()]

    await until(known)
    newcomer = await swarm.peer()
    assert await newcomer.directory.nodes(MODEL) == [node.info()]


async def test_a_directory_goes_on_over_the_daemon_that_replaces_a_dead_one(swarm: Swarm) -> None:
    boot, node, reader = await swarm.peer(), await swarm.peer(), await swarm.peer(client_mode=True)
    await node.directory.announce(node.info())

    async def found() -> bool:
        infos = await reader.directory.nodes(MODEL)
        return [info.peer_id for info in infos] == [node.identity.peer_id]

    for hurt in (node, boot, reader):
        daemon = hurt.transport.p2p._child.pid
        await hurt.transport.check()
        os.kill(daemon, signal.SIGKILL)
        await node.directory.announce(node.info())  # waits for the next daemon where it needs it
        # Who asks at once may find nobody yet: p2pd dials a peer that was away no sooner than in 5 s.
        await until(found, 20.0)
        await hurt.transport.maddrs()
        assert hurt.transport.p2p._child.pid != daemon

    async def known() -> bool:  # every node pings the others that it knows, each 15 s
        return contact_of(node.identity.peer_id) in boot.dht.table

    await until(known, 20.0)


@pytest.mark.parametrize(("offset", "how"), [(10.0, "ahead of"), (-10.0, "behind")])
async def test_wrong_clock_is_told_at_start(swarm: Swarm, offset: float, how: str) -> None:
    boot = await swarm.peer()
    await swarm.peer(offset=offset / 5)  # 2 s are fine
    with pytest.raises(
        NetworkError, match=rf"clock is (9\.\d|10\.\d) s {how} that of peer {boot.identity.peer_id}"
    ) as caught:
        await swarm.peer(offset=offset)
    assert "NTP" in caught.value.hint


async def test_clock_that_goes_wrong_later_is_told_when_others_refuse(swarm: Swarm) -> None:
    await swarm.peer()
    owner = await swarm.peer()
    await owner.directory.announce(owner.info())
    owner.clock.offset = 30.0
    with pytest.raises(
        NetworkError, match=r"refuse our announcement: this computer's clock is (29|30)\.\d s ahead"
    ):
        await owner.directory.announce(owner.info())
    assert owner.directory.clock_problem is not None


async def test_wrong_initial_peers(swarm: Swarm) -> None:
    boot = await swarm.peer()
    identity = Identity.generate()
    transport = await swarm.transport(identity, ())
    for malformed in ("127.0.0.1:4001", "/ip4/127.0.0.1/tcp/4001"):
        with pytest.raises(UsageError):
            await HivemindDirectory.create(transport, identity, [malformed])
    nobody = boot.maddrs[0].replace(boot.identity.peer_id, Identity.generate().peer_id)
    with pytest.raises(PeerUnreachableError, match="no peer answers"):
        await HivemindDirectory.create(transport, identity, [nobody])
    both = await HivemindDirectory.create(transport, identity, [nobody, *boot.maddrs])  # one is enough
    assert await both.nodes(MODEL) == []
    await both.close()


async def test_peer_without_a_directory_is_no_initial_peer(swarm: Swarm) -> None:
    bare = await swarm.transport(Identity.generate(), ())
    identity = Identity.generate()
    transport = await swarm.transport(identity, ())
    with pytest.raises(PeerUnreachableError):
        await HivemindDirectory.create(transport, identity, await bare.maddrs())


async def test_frozen_node_delays_one_read(swarm: Swarm) -> None:
    first, frozen = await swarm.peer(), await swarm.peer()
    reader = await swarm.peer(client_mode=True)
    await first.directory.announce(first.info())
    assert await reader.directory.nodes(MODEL) == [first.info()]
    daemon = frozen.transport.p2p._child.pid
    os.kill(daemon, signal.SIGSTOP)
    try:
        start = time.monotonic()
        assert await reader.directory.nodes(MODEL) == [first.info()]
        assert time.monotonic() - start < 3.5
        start = time.monotonic()
        assert await reader.directory.nodes(MODEL) == [first.info()]
        assert time.monotonic() - start < 1
    finally:
        os.kill(daemon, signal.SIGCONT)


async def test_client_whose_peers_are_all_gone(swarm: Swarm) -> None:
    boot = await swarm.peer()
    reader = await swarm.peer(client_mode=True)
    await boot.directory.close()
    await boot.transport.close()
    with pytest.raises(NetworkError, match="no peer of the swarm's directory answers"):
        await reader.directory.nodes(MODEL)
    await reader.directory.close()
    with pytest.raises(NetworkError, match="closed"):
        await reader.directory.nodes(MODEL)


async def test_who_answered_before_is_a_way_into_the_swarm(swarm: Swarm, tmp_path: Path) -> None:
    boot, node = await swarm.peer(), await swarm.peer()
    await node.directory.announce(node.info())
    path = tmp_path / "book.json"

    async def read() -> list[str]:
        """A new client, whose initial peer is ``boot``."""
        identity, book = Identity.generate(), AddressBook(path)
        transport = await connect_in(identity, boot.maddrs, book, client_mode=True)
        try:
            directory = await HivemindDirectory.create(
                transport, identity, boot.maddrs, client_mode=True, book=book
            )
            found = await directory.nodes(MODEL)
            await directory.close()
        finally:
            await transport.close()
        return [info.peer_id for info in found]

    assert await read() == [node.identity.peer_id]
    await boot.directory.close()
    await boot.transport.close()
    assert await read() == [node.identity.peer_id]
    path.unlink()
    with pytest.raises(PeerUnreachableError, match="cannot join the swarm"):
        await read()


async def test_full_key_travels_in_one_answer(swarm: Swarm) -> None:
    keeper = await swarm.peer()
    reader = await swarm.peer(client_mode=True)
    expiration = time.time() + 60
    keep = functools.partial(keeper.dht.stores.kept.put, group="loopback", by_owner=True)
    for number in range(MAX_ENTRIES + 10):
        identity = Identity(number.to_bytes(32))
        info = NodeInfo(identity.peer_id, keeper.maddrs * 0, MODEL, Span(0, 10), NodeState.ONLINE)
        value = seal(identity, key_hash(KEY), expiration, encode_node(info))
        kept_it = keep(key_hash(KEY), identity.peer_id, value, expiration, body=b"")
        assert kept_it == (number < MAX_ENTRIES)
    nodes = await reader.directory.nodes(MODEL)
    assert len(nodes) == MAX_ENTRIES
    assert nodes == await reader.directory.nodes(MODEL)
    late = await swarm.peer()
    with pytest.raises(NetworkError, match="no room for more nodes"):
        await late.directory.announce(late.info())
