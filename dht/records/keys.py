"""Under which DHT keys announcements are kept, and how much of them.

A key holds a dictionary: subkey = the PeerID (base58 text) of the node that signed the entry. The DHT id of a
key is the SHA-1 of its UTF-8 text; of a swarm with a name or a key, of ``<tag>/<key>``.

    swarm-node/1/nodes/<digest>/<group>   one entry a node; group = the span's first block // GROUP_BLOCKS
    swarm-node/1/models/<shard>           which models exist; shard = SHA-256(name)[0] % MODEL_SHARDS
    swarm-node/1/wanted/<shard>           models that a peer wants; shard = SHA-256(PeerID)[0] % WANTED_SHARDS

Reading a model takes ceil(blocks / GROUP_BLOCKS) keys: 2 for 30 blocks, 8 for 126. A key is found at its
REPLICAS nearest DHT nodes; each keeps at most MAX_ENTRIES of MAX_RECORD_BYTES, so one answer stays under the
4 MiB that a message of the DHT may have. Hence at most MAX_ENTRIES nodes may begin their span within one
group of blocks of one model; later ones are refused until others leave.

In the index of models every node enters its model, and keepers hold INDEX_SPEAKERS entries of each model,
from as many networks as there are. The index grows with the models, not with the nodes, and no node's entry
depends on what others do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ...swarm.types import MAX_BLOCKS, ModelRef, Span

GROUP_BLOCKS = 16
"""A group has this many blocks: a model of 100 blocks needs few keys, and large swarms are spread over
several."""

MODEL_SHARDS = 4
"""The index of models has this many keys. ``status`` reads all of them, and a client that looks for a name
reads one."""

WANTED_SHARDS = 4
"""The demand has this many keys. A peer has one entry, so that no identity has two votes."""

MAX_ENTRIES = 512
"""A key holds at most this many entries: times MAX_RECORD_BYTES that is 2 MiB."""

MAX_MODELS = 256
"""A reader lists at most this many models; a directory that holds more shows the first of them by name."""

MAX_KEYS_OF_OWNER = 16
"""One owner may have entries under this many keys at one keeper. An honest one has a place among the nodes,
its model in the index, what it wants, and for a minute those that it had before."""

MAX_TOTAL_ENTRIES = 16_384
"""One keeper holds at most this many entries of all keys: 64 MiB of the largest ones, about 15 MB of usual
ones."""

INDEX_SPEAKERS = 16
"""A keeper holds this many entries of one model in the index, from as many networks as there are. Liars need
this many networks to keep out all honest nodes of a model, and a key still has room for some dozen models."""

REPLICAS = 5
"""This many DHT nodes hold a key."""


def nodes_key(digest: str, group: int) -> str:
    return f"swarm-node/1/nodes/{digest}/{group}"


def node_key(model: ModelRef, span: Span) -> str:
    """Where a node that serves ``span`` of ``model`` announces itself."""
    return nodes_key(model.digest, span.start // GROUP_BLOCKS)


def node_keys(model: ModelRef) -> list[str]:
    """Every key that may hold nodes of ``model``."""
    blocks = min(max(model.n_blocks, 1), MAX_BLOCKS)
    return [nodes_key(model.digest, group) for group in range(-(-blocks // GROUP_BLOCKS))]


def model_key(name: str) -> str:
    """Where models of this name are listed."""
    return f"swarm-node/1/models/{hashlib.sha256(name.encode()).digest()[0] % MODEL_SHARDS}"


def model_keys() -> list[str]:
    return [f"swarm-node/1/models/{shard}" for shard in range(MODEL_SHARDS)]


def index_hashes(tag: str = "") -> list[bytes]:
    """Under which 20 bytes the DHT knows the index of models, in the swarm with this tag."""
    return [key_hash(key, tag) for key in model_keys()]


def wanted_key(peer_id: str) -> str:
    """Where this peer says which models it looks for."""
    return f"swarm-node/1/wanted/{hashlib.sha256(peer_id.encode()).digest()[0] % WANTED_SHARDS}"


def wanted_keys() -> list[str]:
    return [f"swarm-node/1/wanted/{shard}" for shard in range(WANTED_SHARDS)]


def key_hash(key: str, tag: str = "") -> bytes:
    """The 20 bytes under which the DHT knows ``key`` in the swarm with this tag."""
    text = f"{tag}/{key}" if tag else key
    return hashlib.sha1(text.encode(), usedforsecurity=False).digest()


def in_fair_order(peer_ids: Iterable[str], salt: str) -> list[str]:
    """A fixed order. A peer that does not know ``salt`` cannot place itself in front."""
    return sorted(peer_ids, key=lambda peer_id: hashlib.sha256(f"{salt}/{peer_id}".encode()).digest())
