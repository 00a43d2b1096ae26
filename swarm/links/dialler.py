"""A node's links to other nodes, dialled at addresses that those announce: only where ``dial_guard`` allows
it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..protocol.wire import FIXED_HEADER, MAX_HEADER
from ..timeouts import Patience
from ..transport.interface import Transport
from ..types import ModelRef
from .guarded_dials import GuardedDials
from .link import NodeLink
from .pool import LinkPool

MAX_ANSWER_FRAME = FIXED_HEADER.size + MAX_HEADER
"""Bytes of a frame that another node may send us at most. It answers without rows, which go to the client."""


class Dialler:
    """The links of one model. Implements ``link_probe.Links``. ``clock`` gives seconds."""

    def __init__(
        self,
        transport: Transport,
        model: ModelRef,
        agent: str,
        *,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = LinkPool(transport, model, agent=agent, patience=patience, max_frame=MAX_ANSWER_FRAME)
        self._dials = GuardedDials(transport, clock=clock)

    async def get(self, peer_id: str, maddrs: Sequence[str] = ()) -> NodeLink:
        """The live link to a node; dials it where there is none. ``maddrs``: from its own signed record.
        Raises as ``GuardedDials.dial``."""
        if self._pool.has(peer_id):
            return await self._pool.get(peer_id)
        return await self._dials.dial(peer_id, maddrs, lambda chosen: self._pool.get(peer_id, chosen))

    async def close(self) -> None:
        """End the links. Idempotent."""
        await self._pool.close()
