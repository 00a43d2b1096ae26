"""A node's record that somebody else hands on: believed if its owner signed it, for this model and swarm."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarm_node.dht.directory import TTL_S
from swarm_node.dht.records.bodies import encode_gone, encode_node
from swarm_node.dht.records.envelope import seal
from swarm_node.dht.records.keys import key_hash, node_key
from swarm_node.dht.records.node_records import STALE_S, NodeRecords
from swarm_node.swarm.errors import RemoteProtocolError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.membership.membership import NamedSwarm
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, SignedRecord, Span

MODEL = ModelRef("tiny", "ab" * 32, 30)
OWNER, OTHER = Identity.generate(), Identity.generate()
MADDRS = ("/ip4/8.8.8.8/tcp/31330",)
INFO = NodeInfo(OWNER.peer_id, MADDRS, MODEL, Span(20, 30), NodeState.ONLINE)
NOW = 1e9


def signed(
    info=INFO, *, by=OWNER, end=NOW + TTL_S, tag="", body=None, key=None, credential=None
) -> SignedRecord:
    key = key_hash(key or node_key(info.model, info.span), tag)
    return SignedRecord(end, seal(by, key, end, body or encode_node(info), credential))


def records(now: float = NOW, membership=None) -> NodeRecords:
    return NodeRecords(MODEL, membership, lambda: now)


def test_its_owners_word_is_taken():
    assert records().maddrs(OWNER.peer_id, signed()) == MADDRS
    assert records(NOW + STALE_S).maddrs(OWNER.peer_id, signed()) == MADDRS  # of a long session


def test_in_a_named_swarm_members_are_believed():
    membership = NamedSwarm("home")
    record = signed(tag=membership.tag, credential=membership.credential(OWNER.peer_id, NOW))
    assert records(membership=membership).maddrs(OWNER.peer_id, record) == MADDRS
    for wrong in (signed(), signed(tag=membership.tag)):
        with pytest.raises(RemoteProtocolError):
            records(membership=membership).maddrs(OWNER.peer_id, wrong)
    with pytest.raises(RemoteProtocolError):
        records().maddrs(OWNER.peer_id, record)


@pytest.mark.parametrize(
    "record",
    [
        signed(by=OTHER),
        replace(signed(), expiration=NOW + 59),
        signed(end=NOW + 1000),
        signed(end=NOW - STALE_S - 1),
        signed(replace(INFO, model=ModelRef("tiny", "cd" * 32, 30))),
        signed(key=node_key(MODEL, Span(0, 1))),
        signed(body=encode_gone()),
        replace(signed(), value=b""),
        replace(signed(), value=b"\xc1" * 4096),
        replace(signed(), value=signed().value.replace(b"8.8.8.8", b"9.9.9.9")),
    ],
    ids=["another's", "time", "future", "old", "model", "place", "gone", "empty", "junk", "signature"],
)
def test_nothing_else_is(record):
    with pytest.raises(RemoteProtocolError):
        records().maddrs(OWNER.peer_id, record)
