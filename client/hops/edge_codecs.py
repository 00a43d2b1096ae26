"""Which codec the edge between two peers of a route takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from ...swarm.boundaries import Boundaries
from ...swarm.codecs import int8s
from ...swarm.codecs.codec import Codec
from ...swarm.codecs.kinds import negotiate
from ...swarm.codecs.names import COARSE_KINDS, KINDS
from ...swarm.codecs.scales import ScaleTable
from ...swarm.errors import HopFailedError, RemoteProtocolError
from ...swarm.fidelity.row_reader import RowReader
from ...swarm.links.pool import Offer
from ...swarm.transport.address_groups import UNKNOWN
from ...swarm.types import NodeInfo

Nodes = Mapping[str, NodeInfo]
"""Announcements, by peer id."""


@dataclass(frozen=True, slots=True)
class EdgeCodecs:
    """``wanted``: the kind of codec for edges whose ends both speak it. Kinds that ``failed``
    (``LocalModel``), or lose too much by the word of who reads the rows, are not taken, unless a person
    ``insists``. ``tables``: scales of the rows at each boundary, as far as they are known. ``offers``: what a
    node has told this client; the table that it wants for the rows that go to it comes first, and can harm
    only itself. ``reader``: judges the rows that come to this client from the model's last block, and knows
    their scales."""

    wanted: str
    insists: bool = False
    failed: Collection[str] = ()
    tables: Mapping[int, ScaleTable] = field(default_factory=dict)
    offers: Callable[[str], Offer | None] = lambda peer_id: None
    reader: RowReader | None = None

    def between(
        self, before: str | None, after: str | None, boundary: int, boundaries: Boundaries, nodes: Nodes
    ) -> Codec:
        """The codec of the edge between two peers, at ``boundary``; None is this client. Raises
        HopFailedError."""
        spoken = frozenset(KINDS)
        last = before or after or ""
        for peer_id in filter(None, (before, after)):
            for kinds in self._told_by(peer_id, nodes):
                spoken, last = spoken.intersection(kinds), peer_id
        if not self.insists:
            spoken -= self._too_coarse(after, nodes)
        try:
            table = self._table_of(before, after, boundary, boundaries) if self.wanted == int8s.KIND else None
        except RemoteProtocolError as error:
            raise HopFailedError(after or "", error) from error
        try:
            return negotiate(KINDS, [kind for kind in KINDS if kind in spoken], self.wanted, table)
        except RemoteProtocolError as error:
            raise HopFailedError(last, error) from error

    def _told_by(self, peer_id: str, nodes: Nodes) -> Iterator[tuple[str, ...]]:
        """The kinds of codecs that a node says it speaks: as it told us, and as it announced. Either may be
        the newer list, and a node may come to want fewer."""
        for said in (self.offers(peer_id), nodes.get(peer_id)):
            if said is not None and said.codecs:
                yield said.codecs

    def _too_coarse(self, reader: str | None, nodes: Nodes) -> frozenset[str]:
        """Kinds of codecs not to begin with for rows that a peer reads; None is this client."""
        said = self.reader if reader is None else nodes.get(reader)
        return frozenset(COARSE_KINDS).intersection([*self.failed, *(said.coarse if said else ())])

    def _table_of(
        self, before: str | None, after: str | None, boundary: int, boundaries: Boundaries
    ) -> ScaleTable | None:
        """The scales for rows that go from one peer to another at ``boundary``: those that the reader wants.
        Raises RemoteProtocolError for what it offers."""
        offer = self.offers(after or before or "")
        if after is None:
            learned = self.reader and self.reader.table_for(UNKNOWN if offer is None else offer.group)
            return learned or self.tables.get(boundary)
        if offer is not None and offer.scales and offer.boundary == boundary:
            return ScaleTable.from_peer(offer.scales, boundaries.widths[boundary])
        return self.tables.get(boundary)
