"""The directory in a Kademlia DHT: hivemind's DHTNode in our own event loop, over our own transport."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2PDaemonError

from ..swarm.errors import LocalProtocolError, NetworkError, RemoteProtocolError
from ..swarm.identity import Identity
from ..swarm.transport import NetworkChange, NetworkRestored
from ..swarm.types import ModelRef, NodeInfo
from . import hivemind_noise, layout
from .bootstrap import PING_INTERVAL_S, Bootstrap, DialingTransport
from .directory import TTL_S
from .envelope import seal
from .records import Gone, decode, encode_gone, encode_model, encode_node
from .replicas import RPC_TIMEOUT_S, Entry, Lookup, Replicas
from .storage import BoundedStorage
from .validator import SignedRecordValidator

MAX_NODES = 1024
"""Nodes of one model that a reader takes: more than routing needs, few enough to search at every request."""

SHUTDOWN_S = 3.0
"""To take leave of the DHT; whoever misses us finds out anyway."""

_LATER_S = 0.001  # an entry replaces another only if it expires later
_KEYS_AT_ONCE = 64  # keys a lookup, when listing every model

logger = logging.getLogger(__name__)


class HivemindDirectory:
    """Implements Directory. ``announce`` signs with ``identity``, which must be the transport's.

    ``client_mode``: reads and announces, but keeps nothing for others.
    """

    def __init__(
        self, identity: Identity, node: DHTNode, bootstrap: Bootstrap, ttl: float, clock: Clock
    ) -> None:
        """Use ``create``."""
        self._identity = identity
        self._node = node
        self._bootstrap = bootstrap
        self._ttl = ttl
        self._clock = clock
        self._replicas = Replicas(node, clock)
        self._held: dict[str, float] = {}  # key -> expiration of our own entry under it
        self._writing = asyncio.Lock()  # a withdrawal must not be overtaken by an announcement
        self._pings: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def create(
        cls,
        transport: DialingTransport,
        identity: Identity,
        initial_peers: Sequence[str] = (),
        *,
        client_mode: bool = False,
        ttl: float = TTL_S,
        clock: Callable[[], float] = time.time,
        ping_interval: float = PING_INTERVAL_S,
    ) -> HivemindDirectory:
        """Join the DHT that ``initial_peers`` belong to, or start one if there are none.

        Raises UsageError for malformed addresses, PeerUnreachableError if no initial peer answers and
        NetworkError if all their clocks differ from ``clock`` (Unix time in seconds) by more than 3 s.
        Whoever shares a DHT must use the same ``ttl``.
        """
        hivemind_noise.hush()
        node = await DHTNode.create(
            p2p=transport.p2p,
            node_id=DHTID.generate(source=identity.peer_id.encode()),  # the same after a restart
            num_replicas=layout.REPLICAS,
            wait_timeout=RPC_TIMEOUT_S,
            cache_locally=False,
            cache_nearest=0,
            cache_on_store=False,
            cache_refresh_before_expiry=0,
            reuse_get_requests=False,
            client_mode=client_mode,
            record_validator=SignedRecordValidator(ttl, clock),
        )
        node.protocol.storage = BoundedStorage()
        node.protocol.cache = BoundedStorage(
            max_entries=0, max_total=0
        )  # others may ask us to cache: we don't
        try:
            bootstrap = Bootstrap(node, transport, initial_peers, clock)
            await bootstrap.join()
        except BaseException:
            await node.shutdown()
            raise
        directory = cls(identity, node, bootstrap, ttl, clock)
        transport.watch(directory._on_network)
        directory._pings = asyncio.create_task(bootstrap.run(ping_interval), name="bootstrap pings")
        return directory

    async def announce(self, info: NodeInfo) -> None:
        """Raises NetworkError if nobody takes the announcement, LocalProtocolError if it is out of bounds."""
        if info.peer_id != self._identity.peer_id:
            raise LocalProtocolError(f"{self._identity.peer_id} cannot announce {info.peer_id}")
        node_body, model_body = encode_node(info), encode_model(info.model)
        node_key, model_key = layout.node_key(info.model, info.span), layout.model_key(info.model.name)
        async with self._writing:
            found = await self._lookup([node_key, model_key, *(set(self._held) - {node_key, model_key})])
            wanted = {node_key: node_body}
            group = (entry.owner for entry in found.entries[node_key].values() if not _is_gone(entry))
            if layout.speaks_for_model(info.peer_id, group, node_key):
                wanted[model_key] = model_body
            for key in set(self._held) - {node_key, model_key}:
                wanted[key] = encode_gone()
            errors = await self._write(wanted, found)
            for key in set(wanted) - {node_key, model_key} - set(errors):
                del self._held[key]
            if node_key in errors:
                raise errors.pop(node_key)
            for error in errors.values():
                logger.warning("%s", error.message)

    async def withdraw(self) -> None:
        async with self._writing:
            if self._held:
                found = await self._lookup(list(self._held))
                errors = await self._write(dict.fromkeys(self._held, encode_gone()), found)
                self._held.clear()  # what could not be taken back now expires by itself
                for error in errors.values():
                    raise error

    async def nodes(self, model: ModelRef) -> list[NodeInfo]:
        found = await self._lookup(layout.node_keys(model))
        return self._nodes_in(found, [model])

    async def models(self) -> list[ModelRef]:
        found = await self._lookup(layout.model_keys())
        speakers = Counter(
            ref
            for key, entries in found.entries.items()
            for _, ref in self._decoded(entries.values())
            if isinstance(ref, ModelRef) and layout.model_key(ref.name) == key
        )
        most_said = sorted(speakers, key=lambda ref: (-speakers[ref], ref.name, ref.digest, ref.n_blocks))
        return sorted(most_said[: layout.MAX_MODELS], key=lambda ref: (ref.name, ref.digest, ref.n_blocks))

    async def all_nodes(self) -> list[NodeInfo]:
        models = await self.models()
        keys = list(dict.fromkeys(key for model in models for key in layout.node_keys(model)))
        nodes: list[NodeInfo] = []
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            nodes += self._nodes_in(await self._lookup(keys[start : start + _KEYS_AT_ONCE]), models)
        return sorted(nodes, key=_by_place)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._pings is not None:
            self._pings.cancel()
            await asyncio.gather(self._pings, return_exceptions=True)
        try:
            async with asyncio.timeout(SHUTDOWN_S):
                await self._node.shutdown()
        except (TimeoutError, OSError, EOFError, P2PDaemonError) as error:
            # A daemon that was stopped before us takes no farewell, and may leave the call unanswered.
            logger.debug("the DHT node could not take leave: %r", error)

    async def _on_network(self, change: NetworkChange) -> None:
        if isinstance(change, NetworkRestored) and not self._closed:
            await self._bootstrap.rejoin()

    @property
    def clock_problem(self) -> str | None:
        """A sentence for people while our clock and those of all initial peers differ too much."""
        return self._bootstrap.clock_problem()

    async def _lookup(self, keys: list[str]) -> Lookup:
        if self._closed:
            raise NetworkError("the directory is closed")
        found = await self._replicas.lookup(keys)
        if self._node.protocol.client_mode and not found.answers:
            await self._bootstrap.ping_all()  # the nodes we knew are gone; those we began with may be back
            found = await self._replicas.lookup(keys)
            if not found.answers:
                raise NetworkError(
                    "no peer of the swarm's directory answers",
                    hint="Check this computer's network, and that the peers given as --initial-peers run.",
                )
        return found

    async def _write(self, bodies: dict[str, bytes], found: Lookup) -> dict[str, NetworkError]:
        """Sign and store a body under each key. Returns why, for those that nobody took."""
        errors = await asyncio.gather(*(self._write_one(key, body, found) for key, body in bodies.items()))
        return {key: error for key, error in zip(bodies, errors, strict=True) if error is not None}

    async def _write_one(self, key: str, body: bytes, found: Lookup) -> NetworkError | None:
        owner = self._identity.peer_id
        before = found.entries[key].get(owner)
        expiration = max(
            self._clock() + self._ttl,
            self._held.get(key, 0.0) + _LATER_S,
            before.expiration + _LATER_S if before else 0.0,
        )
        value = seal(self._identity, layout.key_hash(key), expiration, body)
        result = await self._replicas.write(owner, value, expiration, key, found)
        if result.accepted or (result.own and not result.refused):
            self._held[key] = expiration
            return None
        if result.refused:
            await self._bootstrap.ping_all()
            full = "as many nodes as fit are announced there for these blocks"
            return NetworkError(
                f"{result.refused} directory nodes refuse our announcement: {self.clock_problem or full}"
            )
        return NetworkError("no peer of the swarm's directory answers: our announcement was not stored")

    def _nodes_in(self, found: Lookup, models: Iterable[ModelRef]) -> list[NodeInfo]:
        """Well-formed announcements of ``models`` under their proper keys, at most MAX_NODES a model."""
        wanted = {(model.digest, model.n_blocks) for model in models}
        latest: dict[tuple[str, str], tuple[float, NodeInfo]] = {}  # (digest, peer id): a node may have moved
        for key, entries in found.entries.items():
            for entry, info in self._decoded(entries.values()):
                if not isinstance(info, NodeInfo) or layout.node_key(info.model, info.span) != key:
                    continue
                place = (info.model.digest, info.peer_id)
                if (info.model.digest, info.model.n_blocks) not in wanted:
                    continue
                if place not in latest or latest[place][0] < entry.expiration:
                    latest[place] = (entry.expiration, info)
        by_model: dict[str, dict[str, NodeInfo]] = {}
        for (digest, peer_id), (_, info) in latest.items():
            by_model.setdefault(digest, {})[peer_id] = info
        kept = [
            nodes[peer_id]
            for nodes in by_model.values()
            for peer_id in layout.in_fair_order(nodes, self._identity.peer_id)[:MAX_NODES]
        ]
        return sorted(kept, key=_by_place)

    def _decoded(self, entries: Iterable[Entry]) -> Iterable[tuple[Entry, NodeInfo | ModelRef | Gone]]:
        for entry in entries:
            try:
                yield entry, decode(entry.owner, entry.body)
            except RemoteProtocolError as error:
                logger.debug("skipped an announcement: %s", error)


Clock = Callable[[], float]


def _by_place(info: NodeInfo) -> tuple[str, str, int, int, str]:
    return (info.model.name, info.model.digest, info.span.start, info.span.end, info.peer_id)


def _is_gone(entry: Entry) -> bool:
    return entry.body == encode_gone()
