"""Which codec the edge between two peers of a route takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...swarm.boundaries import Boundaries
from ...swarm.codecs import int8s
from ...swarm.codecs.codec import Codec
from ...swarm.codecs.int8s import Int8sCodec
from ...swarm.codecs.kinds import negotiate
from ...swarm.codecs.names import COARSE_KINDS, KINDS
from ...swarm.codecs.scales import ScaleTable
from ...swarm.errors import HopFailedError, RemoteProtocolError
from ...swarm.fairness.recent import RecentMap
from ...swarm.fidelity.row_reader import RowReader
from ...swarm.fidelity.written_rows import WrittenRows
from ...swarm.links.pool import REMEMBERED, Offer
from ...swarm.transport.address_groups import UNKNOWN
from ...swarm.types import NodeInfo

logger = logging.getLogger(__name__)

DOUBTED_S = 3600.0
"""Seconds for which no table is taken from a reader whose table did harm."""
TRIED_ROWS = 64
"""Rows of what a session is to be fed, at most, that a table is tried on: the first ones, and others from all
over."""

Nodes = Mapping[str, NodeInfo]
"""Announcements, by peer id."""


class TableDoubts:
    """Readers whose tables of scales lost too much of the rows that go to them: peers, or None, which is this
    client. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: RecentMap[str | None, float] = RecentMap(REMEMBERED)

    def __contains__(self, reader: str | None) -> bool:
        since = self._since.get(reader)
        return since is not None and self._clock() - since < DOUBTED_S

    def add(self, reader: str | None) -> None:
        if reader not in self:
            self._since[reader] = self._clock()
            logger.warning("event=scales_doubted reader=%s", reader or "own")


@dataclass(frozen=True, slots=True)
class EdgeCodecs:
    """``wanted``: the kind of codec for edges whose ends both speak it. Kinds that ``failed``
    (``LocalModel``), or lose too much by the word of who reads the rows, are not taken, but for the one on
    which a person ``insists``. ``tables``: scales of the rows at each boundary, as far as they are known.
    ``offers``: what a node has told this client; the table that it wants for the rows that go to it comes
    first, and can harm only itself; rows for a reader in ``doubts`` have no table at all. ``embed`` makes of
    token ids the rows that this client sends. ``reader``: judges the rows that come to this client from the
    model's last block, and knows their scales."""

    wanted: str
    insists: bool = False
    failed: Collection[str] = ()
    tables: Mapping[int, ScaleTable] = field(default_factory=dict)
    offers: Callable[[str], Offer | None] = lambda peer_id: None
    reader: RowReader | None = None
    embed: Callable[[Sequence[int]], np.ndarray] | None = None
    doubts: TableDoubts = field(default_factory=TableDoubts)
    _told: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    """Kinds that were taken in place of the one that a person asked for, and told of."""

    def between(
        self,
        before: str | None,
        after: str | None,
        boundary: int,
        boundaries: Boundaries,
        nodes: Nodes,
        ids: Sequence[int] = (),
    ) -> Codec:
        """The codec of the edge between two peers, at ``boundary``; None is this client. ``ids``: what is
        going to be fed, as far as it is known. Raises HopFailedError."""
        spoken = frozenset(KINDS)
        last = before or after or ""
        for peer_id in filter(None, (before, after)):
            for kinds in self._told_by(peer_id, nodes):
                spoken, last = spoken.intersection(kinds), peer_id
        spoken -= self._too_coarse(after, nodes) - ({self.wanted} if self.insists else frozenset())
        try:
            wants_table = self.wanted == int8s.KIND
            table = self._table_of(before, after, boundary, boundaries, ids) if wants_table else None
        except RemoteProtocolError as error:
            raise HopFailedError(after or "", error) from error
        try:
            codec = negotiate(KINDS, [kind for kind in KINDS if kind in spoken], self.wanted, table)
        except RemoteProtocolError as error:
            raise HopFailedError(last, error) from error
        if self.insists and codec.kind != self.wanted and codec.kind not in self._told:
            self._told.add(codec.kind)
            why = "no scales are known" if self.wanted in spoken else "a peer does not read it"
            logger.warning(
                "event=other_wire_codec wanted=%s taken=%s boundary=%d reason=%r",
                *(self.wanted, codec.kind, boundary, why),
            )
        return codec

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
        self,
        before: str | None,
        after: str | None,
        boundary: int,
        boundaries: Boundaries,
        ids: Sequence[int],
    ) -> ScaleTable | None:
        """The scales for rows that go from one peer to another at ``boundary``: those that the reader wants,
        where they do no harm. Raises RemoteProtocolError for what it offers."""
        offer, own = self.offers(after or before or ""), self.tables.get(boundary)
        if after in self.doubts:
            return None
        if after is None:
            learned = self.reader and self.reader.table_for(UNKNOWN if offer is None else offer.group)
            return learned or own
        if offer is None or not offer.scales or offer.boundary != boundary:
            return own
        table = ScaleTable.from_peer(offer.scales, boundaries.widths[boundary])
        if before is None and self._does_harm(table, ids):
            self.doubts.add(after)
            return None
        return table

    def _does_harm(self, table: ScaleTable, ids: Sequence[int]) -> bool:
        """Whether it loses too much of the rows that this client is about to send."""
        if self.embed is None or not ids:
            return False
        tried = [*ids[: TRIED_ROWS // 2], *ids[TRIED_ROWS // 2 :: -(-len(ids) // (TRIED_ROWS // 2))]]
        return WrittenRows(len(tried)).harmed(Int8sCodec.of(table), self.embed(tried), 0, least=1)
