"""A hop before it is open: its place in a route, and what all sessions of the route are opened with."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ...swarm.boundaries import Boundaries
from ...swarm.codecs import int8s
from ...swarm.codecs.codec import Codec
from ...swarm.codecs.kinds import negotiate
from ...swarm.codecs.names import COARSE_KINDS, KINDS
from ...swarm.codecs.scales import ScaleTable
from ...swarm.errors import HopFailedError, RemoteProtocolError
from ...swarm.fidelity.row_reader import RowReader
from ...swarm.links.pool import Offer
from ...swarm.protocol.field_types import Downstream
from ...swarm.types import Hop, NodeInfo
from ..routing.prefix import HopPlace, PageNames, PrefixKey, page_names
from ..routing.router import Router


class Patient(Protocol):
    """Decides how long to wait for a hop that says it works: ``session.doubts.Doubts``."""

    def within_s(self, expected_s: float, queue_s: float) -> float:
        """Seconds for which a hop may show no progress before ``leave`` is asked."""

    def leave(self, hop: Hop) -> bool:
        """Whether to go elsewhere."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What all hops of a session share. ``boundaries``: of the model. ``max_tokens``: KV cache to reserve, in
    tokens. ``embedding_rms``: root mean square of the model's usual embedding, 0 where it is not known."""

    boundaries: Boundaries
    max_tokens: int
    embedding_rms: float = 0.0


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """What a route's session is opened with. ``wire_codec``: the kind of codec for edges whose ends both
    speak it. ``router`` says which hops may be chained; without one the client carries every activation
    itself. ``nodes``: the announcements of its hops, by peer id. With ``prefix`` hops are asked for pages
    that they may hold. ``doubts``: when one is left that may only be slow. ``on_progress`` is told how many
    tokens went through all hops, while a prompt is fed. ``tables``: scales of the rows at each
    boundary, as far as they are known. ``offers``: what a node has told this client; the table that it wants
    for the rows that go to it comes first, and can harm only itself. ``reader``: judges the rows that come to
    this client from the model's last block. Kinds of codecs that ``failed`` (``LocalModel``), or lose too
    much by the word of who reads the rows, are not taken, unless a person ``insists``."""

    session: SessionSettings
    wire_codec: str
    router: Router | None
    nodes: dict[str, NodeInfo] = field(default_factory=dict)
    prefix: PrefixKey | None = None
    doubts: Patient | None = None
    on_progress: Callable[[int], None] | None = None
    tables: Mapping[int, ScaleTable] = field(default_factory=dict)
    offers: Callable[[str], Offer | None] = lambda peer_id: None
    reader: RowReader | None = None
    failed: Collection[str] = ()
    insists: bool = False

    def may_chain(self, before: str, after: str) -> bool:
        return self.router is not None and self.router.may_chain(before, after)

    def codec_between(self, before: str | None, after: str | None, boundary: int) -> Codec:
        """The codec of the edge between two peers, at ``boundary``; None is this client. Raises
        HopFailedError."""
        spoken: tuple[str, ...] = KINDS
        last = before or after or ""
        for peer_id in (before, after):
            if peer_id is not None and (told := self._told_by(peer_id)):
                spoken = tuple(kind for kind in spoken if all(kind in kinds for kinds in told))
                last = peer_id
        avoided = self._too_coarse(after)
        spoken = tuple(kind for kind in spoken if kind not in avoided)
        try:
            table = self._table_of(after, boundary) if self.wire_codec == int8s.KIND else None
        except RemoteProtocolError as error:
            raise HopFailedError(after or "", error) from error
        try:
            return negotiate(KINDS, spoken, self.wire_codec, table)
        except RemoteProtocolError as error:
            raise HopFailedError(last, error) from error

    def _told_by(self, peer_id: str) -> list[tuple[str, ...]]:
        """The kinds of codecs that a node says it speaks: as it told us, and as it announced. Either may be
        the newer list, and a node may come to want fewer."""
        offer, node = self.offers(peer_id), self.nodes.get(peer_id)
        told = [said.codecs for said in (offer, node) if said is not None]
        return [kinds for kinds in told if kinds]

    def _too_coarse(self, reader: str | None) -> frozenset[str]:
        """Kinds of codecs not to begin with for rows that a peer reads; None is this client."""
        if self.insists:
            return frozenset()
        said = self.reader if reader is None else self.nodes.get(reader)
        return frozenset(COARSE_KINDS).intersection(
            [*self.failed, *(said.coarse if said is not None else ())]
        )

    def _table_of(self, after: str | None, boundary: int) -> ScaleTable | None:
        """The scales for rows that go to a peer at ``boundary``. Raises RemoteProtocolError for what it
        offers."""
        offer = self.offers(after) if after is not None else None
        if offer is not None and offer.scales and offer.boundary == boundary:
            return ScaleTable.from_peer(offer.scales, self.session.boundaries.widths[boundary])
        return self.tables.get(boundary)


@dataclass(frozen=True, slots=True)
class HopPlan:
    """A hop's place in a route, before it is open.

    ``session`` is chosen before any OPEN, so that each can name the next. ``codec`` is of what comes in,
    ``reply_codec`` of what goes out. ``announced``: the node's announcement, if it is known. ``upstream`` and
    ``downstream`` as in OPEN. ``names`` are of the pages of ``ids`` that the node may hold already.
    ``parent``: the session on that node whose first ``parent_tokens`` tokens it begins with.
    """

    hop: Hop
    number: int
    hops: int
    session: bytes
    codec: Codec
    reply_codec: Codec
    announced: NodeInfo | None = None
    upstream: str = ""
    downstream: Downstream | None = None
    names: PageNames | None = None
    ids: Sequence[int] = ()
    parent: bytes | None = None
    parent_tokens: int = 0


def new_session() -> bytes:
    return secrets.token_bytes(16)


def places(plans: Sequence[HopPlan]) -> list[HopPlace]:
    """What determines the input of each hop, and of those after it."""
    return [
        HopPlace(
            plan.hop.peer_id, plan.hop.span, plan.announced.weights if plan.announced else "", plan.codec.name
        )
        for plan in plans
    ]


def names_for(plans: Sequence[HopPlan], settings: RouteSettings) -> Sequence[PageNames | None]:
    """The names of each hop's pages, where the session has any."""
    if settings.prefix is None:
        return [None] * len(plans)
    return page_names(settings.prefix, places(plans))
