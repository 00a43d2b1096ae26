"""The calls that other DHT nodes make to us, within what one of them may cost.

Work is counted in milliseconds of the event loop, which serves tokens, too: a figure for each call, and a
cost for the size of its answer. A peer that asks for more than its rate waits, and one that goes on asking is
disconnected. Sizes are bounded before anything is looked at.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from hivemind.p2p import P2P, P2PContext, PeerID
from hivemind.proto import dht_pb2

from ...swarm.fairness.gate import FairGate, GateLimits, TurnedAwayError
from ...swarm.fairness.recent import RecentMap
from ...swarm.fairness.shares import Holder
from ...swarm.types import MAX_RECORD_BYTES
from .store_calls import MAX_STORED_AT_ONCE

RATES = GateLimits(
    rate=250, at_once=500, rate_of_peer=50, at_once_of_peer=250, waiting=512, waiting_of_peer=32
)
"""Milliseconds of work a second: a quarter of the event loop for the DHT, a twentieth for one peer. One peer
may thus ask 1,000 questions a second; the busiest honest ones, which ask for others, ask a few dozen."""

CALL_MS = 0.05
"""Milliseconds of any call: 0.04 was measured on a usual processor."""
ENTRY_MS = 0.15
"""Milliseconds of an entry to store, most of which is the check of its signature."""
BYTES_PER_MS = 512 * 1024
"""Bytes of an answer that cost a millisecond. Measured: a quarter of a mebibyte takes 0.44 ms."""

MAX_REQUEST_BYTES = 8192 + MAX_STORED_AT_ONCE * (MAX_RECORD_BYTES + 256)
DISCONNECT_AFTER = 256
"""After this many refused calls of a peer its connection is ended, because a new one costs it more."""
TELL_S = 60.0
"""Seconds between two lines in the log about floods, so that a flood does not fill it."""
_MAX_COUNTED = 1024  # peers whose refused calls are counted

Handler = Callable[[Any, P2PContext], Awaitable[Any]]
logger = logging.getLogger(__name__)


class GatedP2P:
    """A ``P2P`` whose protobuf handlers are gated; everything else is the daemon's own.

    ``group_of``: the address group of a connected peer.
    """

    def __init__(
        self,
        p2p: P2P,
        group_of: Callable[[str], Awaitable[str]],
        gate: FairGate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._p2p = p2p
        self._group_of = group_of
        self._gate = gate
        self._refused: RecentMap[str, int] = RecentMap(_MAX_COUNTED)
        self._clock = clock
        self._tell_at = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._p2p, name)

    async def add_protobuf_handler(
        self, name: str, handler: Handler, input_protobuf_type: Any, **options: Any
    ) -> None:
        async def gated(request: Any, context: P2PContext) -> Any:
            peer_id = str(context.remote_id)
            if request.ByteSize() > MAX_REQUEST_BYTES:
                raise PermissionError(f"a request of more than {MAX_REQUEST_BYTES} bytes")
            holder = Holder(peer_id, await self._group_of(peer_id))
            try:
                await self._gate.enter(holder, cost_ms(request))
            except TurnedAwayError as refusal:
                await self._turned_away(context.remote_id)
                raise PermissionError(f"too many requests: {refusal}") from None
            response = await handler(request, context)
            self._gate.owe(holder, response.ByteSize() / BYTES_PER_MS)
            return response

        await self._p2p.add_protobuf_handler(name, gated, input_protobuf_type, **options)

    async def _turned_away(self, peer: PeerID) -> None:
        peer_id = str(peer)
        refused = self._refused.pop(peer_id, 0) + 1
        if refused < DISCONNECT_AFTER:
            self._refused[peer_id] = refused
            return
        if self._clock() >= self._tell_at:
            self._tell_at = self._clock() + TELL_S
            logger.warning("event=dht_flood peer=%s calls=%d", peer_id, refused)
        await self._p2p._client.disconnect(peer)


def cost_ms(request: Any) -> float:
    """Milliseconds of work that a request is expected to cause, but for its answer."""
    entries = len(request.keys) if isinstance(request, dht_pb2.StoreRequest) else 0
    return CALL_MS + ENTRY_MS * min(entries, MAX_STORED_AT_ONCE)
