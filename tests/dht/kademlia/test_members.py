"""The DHT of a swarm that admits members only: entries, requests and answers of others count for nothing."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgpack
import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import PeerID
from hivemind.utils import MSGPackSerializer

from swarm_node.dht.joining.meetings import Meetings
from swarm_node.dht.kademlia.contacts import contact_of
from swarm_node.dht.kademlia.directory import HivemindDirectory
from swarm_node.dht.kademlia.members import refusal_of
from swarm_node.dht.records.bodies import encode_node
from swarm_node.dht.records.entry_check import EntryCheck
from swarm_node.dht.records.envelope import seal
from swarm_node.dht.records.keys import key_hash, node_key
from swarm_node.swarm.errors import NotAdmittedError, PeerUnreachableError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.membership.membership import (
    CLOCK_SLACK_S,
    KeyedSwarm,
    Membership,
    NamedSwarm,
    grant,
    swarm_tag,
)
from swarm_node.swarm.transport.p2pd.transport import P2pdTransport
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span
from tests.dht.checked import accepts

NOW = 1_800_000_000.0
MODEL = ModelRef("toy", "ab" * 32, 8)
KEY = Identity(bytes(range(32)))
OWNER, THIEF = Identity(b"o" * 32), Identity(b"t" * 32)


def invited(now: float, ends: float = math.inf, key: Identity = KEY) -> KeyedSwarm:
    return KeyedSwarm(
        "home", key.public_bytes, given=grant(key, swarm_tag("home", key.public_bytes), now, ends)
    )


# Entries.


def entry(
    membership: Membership | None, *, signer: Identity = OWNER, credential: bytes | None = None
) -> DHTRecord:
    expiration = NOW + 60
    if membership is not None and credential is None:
        credential = membership.credential(signer.peer_id, NOW)
    key = key_hash("some key", invited(NOW).tag)
    value = seal(signer, key, expiration, b"body", credential)
    return DHTRecord(key, MSGPackSerializer.dumps(signer.peer_id), value, expiration)


def check(membership: Membership | None) -> EntryCheck:
    return EntryCheck(60.0, lambda: NOW, membership)


def test_members_entries_are_accepted() -> None:
    holder = KeyedSwarm("home", KEY.public_bytes, holder=KEY)
    checker = check(holder)
    for _ in range(2):
        assert accepts(checker, entry(invited(NOW)))
        assert accepts(checker, entry(holder))
    assert accepts(check(NamedSwarm("den")), entry(NamedSwarm("den")))


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(entry(None), id="no membership"),
        pytest.param(entry(NamedSwarm("home")), id="a name only"),
        pytest.param(entry(invited(NOW, key=THIEF)), id="another key"),
        pytest.param(
            entry(None, signer=THIEF, credential=invited(NOW).credential(OWNER.peer_id, NOW)),
            id="another's credential",
        ),
        pytest.param(
            entry(None, credential=invited(NOW - 999, NOW - 900).credential(OWNER.peer_id, NOW - 950)),
            id="over",
        ),
        pytest.param(entry(None, credential=b""), id="empty"),
        pytest.param(entry(None, credential=bytes(512)), id="zeros"),
        pytest.param(entry(None, credential=bytes(513)), id="too long"),
    ],
)
def test_entries_of_others_are_refused(record: DHTRecord) -> None:
    assert not accepts(check(invited(NOW)), record)


def test_an_entry_of_a_swarm_is_none_of_the_public_one() -> None:
    assert not accepts(check(None), entry(invited(NOW)))
    assert not accepts(check(None), entry(NamedSwarm("home")))


def test_a_credential_cannot_be_exchanged_for_another_of_its_owner() -> None:
    """Else anybody could end an announcement by giving it a credential that is over sooner."""
    record = entry(invited(NOW))
    version, body, signature, _ = msgpack.unpackb(record.value)
    other = invited(NOW - 5).credential(OWNER.peer_id, NOW)
    value = msgpack.packb([version, body, signature, other])
    assert not accepts(
        check(invited(NOW)), DHTRecord(record.key, record.subkey, value, record.expiration_time)
    )


def test_what_was_accepted_once_stays_good_until_it_expires() -> None:
    """A member's last entry must not spoil the dictionary that it is in when the membership ends."""
    record = entry(None, credential=invited(NOW - 10, NOW + 1).credential(OWNER.peer_id, NOW))
    for later in (0, 1, 30, 59.9, CLOCK_SLACK_S + 30):
        assert accepts(EntryCheck(60.0, lambda at=NOW + later: at, invited(NOW)), record)


def test_a_refusal_is_told_from_other_errors() -> None:
    told = refusal_of(RuntimeError("Failed: PermissionError('not admitted: peer x is\x1b[0m nobody')"), "w")
    assert told is not None
    assert "peer x is\u241b[0m nobody" in told.message
    assert refusal_of(RuntimeError("timed out"), "w") is None
    own = NotAdmittedError("ours")
    assert refusal_of(own, "w") is own


# Over real daemons.


class Members:
    """Directories over daemons of their own on 127.0.0.1."""

    def __init__(self) -> None:
        self._closers: list[Callable[[], Awaitable[object]]] = []

    async def directory(
        self, membership: Membership, initial: Sequence[str] = ()
    ) -> tuple[HivemindDirectory, P2pdTransport]:
        identity = Identity.generate()
        transport = await P2pdTransport.create(identity, initial_peers=initial)
        self._closers.append(transport.close)
        directory = await HivemindDirectory.create(transport, identity, initial, membership=membership)
        self._closers.append(directory.close)
        return directory, transport

    async def meetings(self, directory: HivemindDirectory, transport: P2pdTransport, tag: str) -> Meetings:
        meetings = Meetings(
            directory,
            tag=tag,
            own_id=transport.peer_id,
            listen_maddrs=transport.listen_maddrs,
            interfaces=lambda: ["127.0.0.1"],
        )
        self._closers.append(meetings.close)
        return meetings

    async def close(self) -> None:
        for close in reversed(self._closers):
            await close()


@pytest.fixture
async def members() -> AsyncIterator[Members]:
    made = Members()
    yield made
    await made.close()


def info(transport: P2pdTransport) -> NodeInfo:
    maddrs = transport.listen_maddrs
    return NodeInfo(transport.peer_id, maddrs, MODEL, Span(0, 8), NodeState.ONLINE, 0.5)


@pytest.mark.swarm
async def test_members_meet_in_their_dht_and_nobody_else_does(members: Members) -> None:
    now = time.time()
    holder = KeyedSwarm("home", KEY.public_bytes, holder=KEY)
    first, at_first = await members.directory(holder)
    address = [f"{at_first.listen_maddrs[0]}/p2p/{at_first.peer_id}"]
    second, at_second = await members.directory(invited(now, now + 3600), address)
    await second.announce(info(at_second))
    assert [node.peer_id for node in await first.nodes(MODEL)] == [at_second.peer_id]
    asking = await P2pdTransport.create(THIEF, initial_peers=address, client_mode=True)
    try:
        for stranger, said in (
            (None, "admit"),
            (invited(now, key=THIEF), "not in this swarm"),
            (invited(now - 99, now - 1), "ended on"),
        ):
            with pytest.raises(NotAdmittedError, match=said) as caught:
                await HivemindDirectory.create(asking, THIEF, address, client_mode=True, membership=stranger)
            assert caught.value.hint
        reader = await HivemindDirectory.create(
            asking, THIEF, address, client_mode=True, membership=invited(now)
        )
        assert [node.peer_id for node in await reader.nodes(MODEL)] == [at_second.peer_id]
        await reader.close()
    finally:
        await asking.close()


@pytest.mark.swarm
async def test_a_stranger_in_the_dht_reads_nothing_writes_nothing_and_is_not_asked(members: Members) -> None:
    now = time.time()
    first, at_first = await members.directory(invited(now))
    await first.announce(info(at_first))
    address = [f"{at_first.listen_maddrs[0]}/p2p/{at_first.peer_id}"]
    transport = await P2pdTransport.create(THIEF, initial_peers=address)
    stranger = await DHTNode.create(p2p=transport.p2p, cache_nearest=0)
    try:
        peer = PeerID.from_base58(at_first.peer_id)
        tag = invited(now).tag
        key_id = DHTID.from_bytes(key_hash(node_key(MODEL, Span(0, 8)), tag))
        assert await stranger.protocol.call_ping(peer) is None
        assert await stranger.protocol.call_find(peer, [key_id]) is None
        body = encode_node(NodeInfo(THIEF.peer_id, (), MODEL, Span(0, 8), NodeState.ONLINE))
        for credential in (None, invited(now).credential(OWNER.peer_id, now)):
            value = seal(THIEF, key_id.to_bytes(), now + 60, body, credential)
            stored = await stranger.protocol.call_store(
                peer, [key_id], [value], [now + 60], subkeys=[THIEF.peer_id]
            )
            assert stored is None
        assert [node.peer_id for node in await first.nodes(MODEL)] == [at_first.peer_id]
        assert contact_of(THIEF.peer_id) not in first._node.table
    finally:
        await stranger.shutdown()
        await transport.close()


# Meeting on the LAN.


@pytest.mark.swarm
async def test_swarms_of_one_lan_become_one_when_they_see_each_other(members: Members) -> None:
    """Two that have met already, and two others: what one of them announces is read by all."""
    named = NamedSwarm(secrets.token_hex(8))
    groups = []
    for _ in range(2):
        first, at_first = await members.directory(named)
        address = [f"{at_first.listen_maddrs[0]}/p2p/{at_first.peer_id}"]
        second, at_second = await members.directory(named, address)
        await second.announce(info(at_second))
        groups.append(((first, at_first), (second, at_second)))
    (left, at_left), (far, _) = groups[0]
    (right, at_right), (_, at_told) = groups[1]
    assert at_told.peer_id not in {node.peer_id for node in await far.nodes(MODEL)}
    other = await members.meetings(left, at_left, NamedSwarm("another").tag)
    await other.begin(mdns=True, joined=True, needed=False)
    here = await members.meetings(left, at_left, named.tag)
    there = await members.meetings(right, at_right, named.tag)
    await asyncio.gather(
        *(meetings.begin(mdns=True, joined=False, needed=True) for meetings in (here, there))
    )
    assert here.met == {at_right.peer_id}
    assert there.met == {at_left.peer_id}
    assert len(await far.nodes(MODEL)) == 2
    assert other.met == set()


class Alone:
    """A directory that knows nobody."""

    def __init__(self, refusals: Sequence[NotAdmittedError] = ()) -> None:
        self.refusals = list(refusals)
        self.forgotten: list[str] = []
        self.asked: list[str] = []

    async def meet(self, peer_id: str, maddrs: Sequence[str]) -> bool:
        self.asked.append(peer_id)
        return False

    def forget(self, peer_id: str) -> None:
        self.forgotten.append(peer_id)


@pytest.mark.parametrize(
    ("refusals", "error", "said"),
    [
        ((), PeerUnreachableError, "no peer of the swarm was found at the invite's addresses"),
        ([NotAdmittedError("peer x is over", hint="renew")], NotAdmittedError, "peer x is over"),
    ],
)
async def test_who_needs_somebody_is_told_why_there_is_nobody(
    monkeypatch: pytest.MonkeyPatch, refusals: Sequence[NotAdmittedError], error: type[Exception], said: str
) -> None:
    monkeypatch.setattr("swarm_node.dht.joining.meetings.FIND_S", 0.05)
    directory = Alone(refusals)
    meetings = Meetings(directory)
    address = f"/ip4/10.1.2.3/tcp/4/p2p/{OWNER.peer_id}"
    with pytest.raises(error, match=said):
        await meetings.begin([address], mdns=False, joined=False, needed=True)
    assert directory.asked == [OWNER.peer_id]
    await meetings.begin([address], mdns=False, joined=True, needed=True)  # nobody is waited for
    await meetings.close()
