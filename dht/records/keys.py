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
from as many networks as there are: it grows with the models, not with the nodes, and nobody's entry depends
on what others do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ...swarm.types import MAX_BLOCKS, ModelRef, Span

GROUP_BLOCKS = 16
"""Blocks a group: few keys to read for a model of 100 blocks, yet large swarms are spread over several."""

MODEL_SHARDS = 4
"""Keys of the index of models: all are read by ``status``, one by a client that looks for a name."""

WANTED_SHARDS = 4
"""Keys of the demand: one entry a peer, so that nobody has two votes under one identity."""

MAX_ENTRIES = 512
"""Entries a key: times MAX_RECORD_BYTES that is 2 MiB."""

MAX_MODELS = 256
"""Models that a reader lists; a directory that holds more shows the first of them by name."""

MAX_KEYS_OF_OWNER = 16
"""Keys under which one owner may have entries at one keeper: an honest one has a place among the nodes, its
model in the index, what it wants, and for a minute those that it had before."""

MAX_TOTAL_ENTRIES = 16_384
"""Entries of all keys together at one keeper: 64 MiB of the largest ones, about 15 MB of usual ones."""

INDEX_SPEAKERS = 16
"""Entries that a keeper holds of one model in the index, from as many networks as there are. Liars need this
many networks to keep out all honest nodes of a model, and a key still has room for some dozen models."""

REPLICAS = 5
"""DHT nodes that hold a key."""


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
    """A fixed order that nobody can place himself in front of without knowing ``salt``."""
    return sorted(peer_ids, key=lambda peer_id: hashlib.sha256(f"{salt}/{peer_id}".encode()).digest())
