"""The worked examples of docs/reference/protocol.md are what the code does."""

from __future__ import annotations

import struct

from swarm_node.dht.directory import REFRESH_S, TTL_S
from swarm_node.dht.records.bodies import encode_gone
from swarm_node.dht.records.envelope import seal
from swarm_node.dht.records.keys import (
    GROUP_BLOCKS,
    INDEX_SPEAKERS,
    MAX_ENTRIES,
    MAX_KEYS_OF_OWNER,
    MAX_MODELS,
    MAX_TOTAL_ENTRIES,
    MODEL_SHARDS,
    REPLICAS,
    key_hash,
    model_key,
    node_key,
)
from swarm_node.swarm.discovery.mdns_records import MAX_MADDRS, service_type
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.membership.invite import MAX_INVITE_CHARS, MAX_PEER_MADDRS, MAX_PEERS
from swarm_node.swarm.membership.membership import (
    CLOCK_SLACK_S,
    MAX_CREDENTIAL_BYTES,
    Grant,
    KeyedSwarm,
    swarm_tag,
)
from swarm_node.swarm.membership.transport import MEMBER_KIND
from swarm_node.swarm.types import MAX_RECORD_BYTES, ModelRef, Span
from tests import ROOT

TEXT = (ROOT / "docs/reference/protocol.md").read_text()
OWNER = Identity(bytes(range(32)))


def test_identity_and_keys() -> None:
    assert f"`{OWNER.peer_id}`" in TEXT
    assert model_key("demo") == "swarm-node/1/models/2"
    assert f"`swarm-node/1/models/2` has the id `{key_hash(model_key('demo')).hex()}`" in TEXT


def test_withdrawal() -> None:
    key = key_hash(node_key(ModelRef("demo", "ab" * 32, 30), Span(0, 12)))
    assert f"`{key.hex()}`" in TEXT
    value = seal(OWNER, key, 1800000000.0, encode_gone()).hex()
    assert value in "".join(line.strip() for line in TEXT.splitlines() if line.startswith("    "))


def test_limits() -> None:
    """If a limit changes, so must the text: these numbers are written out there."""
    assert (GROUP_BLOCKS, MODEL_SHARDS, INDEX_SPEAKERS, REPLICAS) == (16, 4, 16, 5)
    assert (MAX_KEYS_OF_OWNER, MAX_TOTAL_ENTRIES) == (16, 16_384)
    assert (MAX_RECORD_BYTES, MAX_ENTRIES, MAX_MODELS, TTL_S, REFRESH_S) == (4096, 512, 256, 60, 20)


def test_swarms_and_members() -> None:
    tag = swarm_tag("home", OWNER.public_bytes)
    assert f"`{tag}`" in TEXT
    assert f"`{swarm_tag('home')}`" in TEXT
    assert f"`swarm-node/1/models/2` has the id `{key_hash('swarm-node/1/models/2', tag).hex()}`" in TEXT
    assert f"`{service_type('').rstrip('.')}`" in TEXT
    assert f"`{service_type(tag).rstrip('.')}`" in TEXT
    invite = Identity(bytes(range(32, 64)))
    begins, ends = 1800000000, 1802592000
    signed = b"".join(
        (b"swarm-node invite 1\n", bytes.fromhex(tag), invite.public_bytes, struct.pack("!QQ", begins, ends))
    )
    swarm = KeyedSwarm("home", OWNER.public_bytes, given=Grant(invite.seed, begins, ends, OWNER.sign(signed)))
    credential = swarm.credential(OWNER.peer_id, begins + 1.0)
    assert len(credential) == 177
    assert credential.hex() in "".join(line.strip() for line in TEXT.splitlines() if line.startswith("    "))
    assert swarm.check(OWNER.peer_id, credential, begins) == ends
    assert (CLOCK_SLACK_S, MAX_CREDENTIAL_BYTES, MEMBER_KIND) == (120, 512, 17)
    assert (MAX_INVITE_CHARS, MAX_PEERS, MAX_PEER_MADDRS, MAX_MADDRS) == (4096, 8, 4, 8)
