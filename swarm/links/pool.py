"""The links that this side has opened: one for each node, dialled at its first use."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import PeerSparedError, StreamClosedError
from ..fairness.recent import RecentMap
from ..protocol.wire import DEFAULT_MAX_FRAME, PROTOCOL_ID
from ..runtime.tasks import cancel_all, look_at
from ..timeouts import Patience
from ..transport.address_groups import UNKNOWN, address_group
from ..transport.dial_guard import DialGuard, for_client, public_of
from ..transport.interface import Transport
from ..transport.resolve import resolve_all
from ..types import ModelRef
from .link import NodeLink

REMEMBERED = 256
"""The offers of this many nodes are remembered; one has at most ``MAX_SCALES`` bytes."""


@dataclass(frozen=True, slots=True)
class Offer:
    """How a node takes rows. ``codecs``: their kinds. ``scales``: the table for rows that enter at
    ``boundary``, empty for none. ``group``: of the address where it was met."""

    codecs: tuple[str, ...]
    boundary: int
    scales: bytes
    group: str = UNKNOWN


class LinkPool:
    """The links of a client, one a node. Used in one event loop; ``close`` ends them all. ``max_frame``:
    bytes of a frame that is accepted on one. ``guard`` spares hosts on the Internet that many records name
    and where no peer is."""

    def __init__(
        self,
        transport: Transport,
        model: ModelRef,
        *,
        agent: str = "swarm-node",
        patience: Patience | None = None,
        max_frame: int = DEFAULT_MAX_FRAME,
        guard: DialGuard | None = None,
    ) -> None:
        self.patience = patience or Patience()
        self._transport = transport
        self._model = model
        self._agent = agent
        self._max_frame = max_frame
        self._guard = guard
        self._dials: dict[str, asyncio.Task[NodeLink]] = {}
        self._links: set[NodeLink] = set()
        self._offers: RecentMap[str, Offer] = RecentMap(REMEMBERED)
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def has(self, peer_id: str) -> bool:
        """True if ``get`` need not dial: there is a link, or one is being made."""
        return peer_id in self._dials

    async def get(self, peer_id: str, maddrs: Sequence[str] = ()) -> NodeLink:
        """The live link to a node; dials it where there is none.

        Raises NetworkError's subclasses. Callers that ask at the same time share one dial.
        """
        if self._closed:
            raise StreamClosedError("the client is closed")
        dial = self._dials.get(peer_id)
        if dial is None:
            dial = self._dials[peer_id] = asyncio.create_task(self._dial(peer_id, maddrs))
            dial.add_done_callback(look_at)  # all that wanted it may have given up
        # Shielded: that one session is cancelled must not cost the others their dial.
        try:
            return await asyncio.shield(dial)
        except asyncio.CancelledError:
            asker = asyncio.current_task()
            if dial.cancelled() and not (asker and asker.cancelling()):  # by close, not by the caller
                raise StreamClosedError("the client is closed") from None
            raise

    def is_met(self, peer_id: str) -> bool:
        """Whether the link to a node stands, and the node has answered HELLO."""
        dial = self._dials.get(peer_id)
        if dial is None or not dial.done() or dial.cancelled() or dial.exception() is not None:
            return False
        return dial.result().welcome.done()

    def offer_of(self, peer_id: str) -> Offer | None:
        """What a node said last; None if it never did. Remembered when its link ends: with another codec the
        pages of a conversation would have other names."""
        if self.is_met(peer_id):
            self._note(self._dials[peer_id].result())
        return self._offers.get(peer_id)

    def _note(self, link: NodeLink) -> None:
        if link.welcome.done() and not link.welcome.cancelled() and link.welcome.exception() is None:
            welcome = link.welcome.result()
            self._offers[link.peer_id] = Offer(
                welcome.codecs, welcome.span.start, welcome.scales, address_group(link.remote_maddr)
            )

    async def check(self, remote_maddr: str = "") -> None:
        """Raises LocalNetworkError if it is our own network that does not answer, on the way to there."""
        await self._transport.check(remote_maddr)

    async def close(self) -> None:
        self._closed = True
        dials = list(self._dials.values())
        await cancel_all(dials)
        links = [dial.result() for dial in dials if not dial.cancelled() and dial.exception() is None]
        for link in links:
            await link.close()

    async def _chosen(self, peer_id: str, maddrs: Sequence[str]) -> tuple[list[str], list[str]]:
        """Where to dial a peer, and what of it the guard counts. Names are looked up before, as one may lead
        to our own machine. Raises PeerSparedError, and PeerUnreachableError if no name is known."""
        chosen = for_client(await resolve_all([maddr.removesuffix(f"/p2p/{peer_id}") for maddr in maddrs]))
        if self._guard is None:
            return chosen, []
        public = public_of(chosen)
        counted = self._guard.begin(peer_id, public, asyncio.get_running_loop().time())
        left = [maddr for maddr in chosen if maddr in counted or maddr not in public]
        if chosen and not left:
            raise PeerSparedError(
                f"peer {peer_id} is not dialled now: nothing answered where many peers announce"
            )
        return left, counted

    async def _dial(self, peer_id: str, maddrs: Sequence[str]) -> NodeLink:
        link: NodeLink | None = None

        def forget() -> None:
            if link is not None:
                self._note(link)
                self._links.discard(link)
            if self._dials.get(peer_id) is task:
                del self._dials[peer_id]

        task = asyncio.current_task()
        try:
            chosen, counted = await self._chosen(peer_id, maddrs)
            stream = await self._transport.open_stream(
                peer_id, PROTOCOL_ID, chosen, timeout=self.patience.dial_s, lazy=True
            )
            if self._guard is not None:
                self._guard.met(peer_id, counted, stream.remote_maddr)
            link = NodeLink(
                stream, self._model, self._agent, self.patience, forget, self._links, self._max_frame
            )
            self._links.add(link)
            return link
        except BaseException:
            forget()
            raise
