"""The directory's logic over signed entries, wherever they are kept: what to write where, and what to
accept."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from ...swarm.errors import LocalProtocolError, NetworkError, NotAdmittedError, RemoteProtocolError
from ...swarm.fairness.recent import RecentMap
from ...swarm.identity import Identity
from ...swarm.membership.membership import Membership
from ...swarm.placement.demand import Wanted, WantedModel
from ...swarm.types import Incarnation, ModelRef, NodeInfo, SignedRecord
from ..left_out import LeftOut, LeftOutPeers
from ..namesakes import Namesake, Namesakes
from .bodies import Content, decode, encode_gone, encode_model, encode_node, encode_wanted
from .entry_check import Entry
from .envelope import seal
from .keys import (
    MAX_MODELS,
    in_fair_order,
    key_hash,
    model_key,
    model_keys,
    node_key,
    node_keys,
    wanted_key,
    wanted_keys,
)

MAX_NODES = 4096
"""A reader takes at most this many nodes of one model: all that 8 full keys hold. So no node of a model of up
to 128 blocks is left out because there are many others. A search among all of these takes an eighth of a
second."""

FEW_COPIES = 3
"""A node that finds fewer copies of its entry elsewhere stores it at more nodes. Of REPLICAS, our own may be
one and a liar's another."""

_LATER_S = 0.001  # an entry replaces another only if it expires later
_MODELS_OF_ONE = 4  # of one identity that are looked for
_KEYS_AT_ONCE = 64  # keys a lookup, when listing every model

Clock = Callable[[], float]

logger = logging.getLogger(__name__)


class Found(Protocol):
    """What a lookup found: live entries by key and owner, their signatures checked."""

    @property
    def entries(self) -> Mapping[str, Mapping[str, Entry]]: ...

    @property
    def is_alone(self) -> bool:
        """See ``Directory``."""


FoundT = TypeVar("FoundT", bound=Found)


class RecordDirectory(ABC, Generic[FoundT]):
    """Implements Directory but for ``close``. ``identity`` signs; ``ttl``: seconds that an entry lives;
    ``clock``: Unix time in seconds. ``membership``: of a swarm with a name or a key."""

    def __init__(
        self, identity: Identity, ttl: float, clock: Clock, membership: Membership | None = None
    ) -> None:
        self._membership = membership
        self._identity = identity
        self._ttl = ttl
        self._clock = clock
        self._left_out = LeftOutPeers(clock)
        self._namesakes = Namesakes(ttl)
        self._held: dict[str, float] = {}  # key -> expiration of our own entry under it
        self._announced_at: str | None = None  # the key of what we announce
        self._announced: ModelRef | None = None
        self._said_too: RecentMap[ModelRef, None] = RecentMap(_MODELS_OF_ONE)  # under our identity
        self._is_alone = False  # those that answered the last reading
        self._writing = asyncio.Lock()  # a withdrawal must not be overtaken by an announcement

    @abstractmethod
    async def _lookup(self, keys: Sequence[str]) -> FoundT:
        """The live entries of these keys. Raises NetworkError if no node can be asked."""

    @abstractmethod
    async def _store(self, key: str, expiration: float, value: bytes, found: FoundT) -> NetworkError | None:
        """Store our own signed entry. Returns the reason if no node took it. ``found``: a lookup of this
        key."""

    @property
    def is_alone(self) -> bool:
        return self._is_alone

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        return self._left_out.all()

    async def _copies(self, key: str, owner: str) -> tuple[int, int]:
        """How many other nodes return an owner's entry, and how many were asked. Raises NetworkError."""
        entry = (await self._lookup([key])).entries[key].get(owner)
        return int(entry is not None and entry.body != encode_gone()), 1

    async def _on_few_copies(self) -> None:
        """Few other nodes return our entry, though some took our announcement."""

    async def announce(self, info: NodeInfo) -> None:
        """Raises NetworkError if no node takes the announcement, LocalProtocolError if it is out of
        bounds."""
        if info.peer_id != self._identity.peer_id:
            raise LocalProtocolError(f"{self._identity.peer_id} cannot announce {info.peer_id}")
        mark = self._namesakes.mark(self._clock())
        node_body = encode_node(replace(info, incarnation=mark))
        model_body = encode_model(info.model)
        key, index_key = node_key(info.model, info.span), model_key(info.model.name)
        async with self._writing:
            former = set(self._held) - {key, index_key, wanted_key(info.peer_id)}
            found = await self._lookup([key, index_key, *former])
            self._note_namesakes(found)
            wanted = {key: node_body, index_key: model_body}
            wanted |= dict.fromkeys(former, encode_gone())
            errors = await self._write(wanted, found)
            for old in former - set(errors):
                del self._held[old]
            if key in errors:
                raise errors.pop(key)
            self._announced_at, self._announced = key, info.model
            self._namesakes.announced(mark)
            for error in errors.values():
                logger.warning("%s", error.message)

    async def is_announced(self) -> bool | None:
        if (key := self._announced_at) is None:
            return None
        copies, asked = await self._copies(key, self._identity.peer_id)
        if not asked or self._announced_at != key:
            return None
        if copies < min(FEW_COPIES, asked):
            await self._on_few_copies()
        return copies > 0

    @property
    def incarnation(self) -> Incarnation | None:
        return self._namesakes.own

    @property
    def namesakes(self) -> Sequence[Namesake]:
        return self._namesakes.live(self._clock())

    def met_namesake(self, maddrs: Sequence[str], knows: Sequence[NodeInfo]) -> None:
        """A process of our identity has just answered at these addresses (without /p2p/). ``knows``: the
        nodes that it tells of."""
        under_ours = [info for info in knows if info.peer_id == self._identity.peer_id]
        there = False
        for info in under_ours:
            if info.record is not None and any(
                maddr.partition("/p2p/")[0] in maddrs for maddr in info.maddrs
            ):
                self._namesakes.met(info, info.record.expiration)
                there = True
        own = self._namesakes.own
        if not there and own is not None and all(info.incarnation != own for info in under_ours):  # not us
            self._namesakes.met_silent(tuple(maddrs), self._clock())

    async def look_for_namesakes(self) -> None:
        """Announcing shows those that serve blocks near ours; the index of models tells of others."""
        if (model := self._announced) is None:
            return
        self._note_namesakes(await self._lookup([*node_keys(model), *model_keys()]))
        if self._said_too:
            keys = dict.fromkeys(key for other in self._said_too for key in node_keys(other))
            self._note_namesakes(await self._lookup(list(keys)))

    def _note_namesakes(self, found: FoundT) -> None:
        own = self._identity.peer_id
        for key, entries in found.entries.items():
            for entry, said in self._decoded([entries[own]] if own in entries else []):
                if isinstance(said, NodeInfo) and node_key(said.model, said.span) == key:
                    self._namesakes.saw(said, entry.expiration)
                elif isinstance(said, ModelRef) and said != self._announced:
                    self._said_too[said] = None

    async def withdraw(self) -> None:
        async with self._writing:
            self._announced_at = self._announced = None
            if self._held:
                found = await self._lookup(list(self._held))
                errors = await self._write(dict.fromkeys(self._held, encode_gone()), found)
                self._held.clear()  # what could not be taken back now expires by itself
                for error in errors.values():
                    raise error

    async def want(self, models: Sequence[WantedModel]) -> None:
        key = wanted_key(self._identity.peer_id)
        async with self._writing:
            if not models and key not in self._held:
                return
            body = encode_wanted(tuple(models)) if models else encode_gone()
            error = await self._write_one(key, body, await self._lookup([key]))
            if error is not None:
                raise error
            if not models:
                del self._held[key]

    async def wanted(self) -> list[Wanted]:
        found = await self._read(wanted_keys())
        records = {
            entry.owner: record
            for key, entries in found.entries.items()
            for entry, record in self._decoded(entries.values())
            if isinstance(record, Wanted) and wanted_key(entry.owner) == key
        }
        return [records[owner] for owner in sorted(records)]

    async def nodes(self, model: ModelRef) -> list[NodeInfo]:
        found = await self._read(node_keys(model))
        return self._nodes_in(found, [model])

    async def models(self) -> list[ModelRef]:
        found = await self._read(model_keys())
        speakers = Counter(
            ref
            for key, entries in found.entries.items()
            for _, ref in self._decoded(entries.values())
            if isinstance(ref, ModelRef) and model_key(ref.name) == key
        )
        most_said = sorted(speakers, key=lambda ref: (-speakers[ref], ref.name, ref.digest, ref.n_blocks))
        return sorted(most_said[:MAX_MODELS], key=lambda ref: (ref.name, ref.digest, ref.n_blocks))

    async def all_nodes(self) -> list[NodeInfo]:
        return await self.nodes_of(await self.models())

    async def nodes_of(self, models: Sequence[ModelRef]) -> list[NodeInfo]:
        keys = list(dict.fromkeys(key for model in models for key in node_keys(model)))
        nodes: list[NodeInfo] = []
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            nodes += self._nodes_in(await self._read(keys[start : start + _KEYS_AT_ONCE]), models)
        return sorted(nodes, key=_by_place)

    async def _read(self, keys: Sequence[str]) -> FoundT:
        found = await self._lookup(keys)
        self._is_alone = found.is_alone
        return found

    async def _write(self, bodies: dict[str, bytes], found: FoundT) -> dict[str, NetworkError]:
        """Sign and store a body under each key. Returns the reasons for those that no node took."""
        errors = await asyncio.gather(*(self._write_one(key, body, found) for key, body in bodies.items()))
        return {key: error for key, error in zip(bodies, errors, strict=True) if error is not None}

    async def _write_one(self, key: str, body: bytes, found: FoundT) -> NetworkError | None:
        before = found.entries[key].get(self._identity.peer_id)
        expiration = max(
            self._clock() + self._ttl,
            self._held.get(key, 0.0) + _LATER_S,
            before.expiration + _LATER_S if before else 0.0,
        )
        tag, credential = "", None
        if self._membership is not None:
            tag = self._membership.tag
            try:
                credential = self._membership.credential(self._identity.peer_id, self._clock())
            except NotAdmittedError as refusal:
                return NetworkError(refusal.message, hint=refusal.hint)
        value = seal(self._identity, key_hash(key, tag), expiration, body, credential)
        error = await self._store(key, expiration, value, found)
        if error is None:
            self._held[key] = expiration
        return error

    def _nodes_in(self, found: FoundT, models: Iterable[ModelRef]) -> list[NodeInfo]:
        """Well-formed announcements of ``models`` under their proper keys, at most MAX_NODES a model."""
        wanted = {(model.digest, model.n_blocks) for model in models}
        latest: dict[tuple[str, str], tuple[float, NodeInfo]] = {}  # (digest, peer id): a node may have moved
        for key, entries in found.entries.items():
            for entry, info in self._decoded(entries.values()):
                if not isinstance(info, NodeInfo) or node_key(info.model, info.span) != key:
                    continue
                place = (info.model.digest, info.peer_id)
                if (info.model.digest, info.model.n_blocks) not in wanted:
                    continue
                if place not in latest or latest[place][0] < entry.expiration:
                    record = SignedRecord(entry.expiration, entry.value)
                    latest[place] = (entry.expiration, replace(info, record=record))
        by_model: dict[str, dict[str, NodeInfo]] = {}
        for (digest, peer_id), (_, info) in latest.items():
            by_model.setdefault(digest, {})[peer_id] = info
        kept = [
            nodes[peer_id]
            for nodes in by_model.values()
            for peer_id in in_fair_order(nodes, self._identity.peer_id)[:MAX_NODES]
        ]
        return sorted(kept, key=_by_place)

    def _decoded(self, entries: Iterable[Entry]) -> Iterable[tuple[Entry, Content]]:
        """The entries that can be used. An unusable one costs its owner its place, and never the reader its
        answer."""
        for entry in entries:
            try:
                content = decode(entry.owner, entry.body)
            except RemoteProtocolError as error:
                self._left_out.note(entry.owner, _without_name(error.message, entry.owner))
            except Exception as bug:  # noqa: BLE001 - told with its traceback
                self._left_out.note(entry.owner, f"its announcement cannot be read: {bug!r:.200}", bug)
            else:
                yield entry, content


def _without_name(message: str, owner: str) -> str:
    """The complaint without the name, for a reader that already shows it."""
    return message.removeprefix(f"an announcement of {owner}: ").removeprefix(f"{owner} ")


def _by_place(info: NodeInfo) -> tuple[str, str, int, int, str]:
    return (info.model.name, info.model.digest, info.span.start, info.span.end, info.peer_id)
