"""A node's links to others, whether it serves a span at the moment or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...swarm.errors import StreamClosedError
from ...swarm.links.dialler import Dialler
from ...swarm.links.link import NodeLink
from ...swarm.transport.interface import Transport
from ...swarm.types import ModelRef


class NodeLinks:
    """Those of the span's own chains while there is one, else a few of its own. Implements
    ``link_probe.Links``. ``model``: what is asked for at the other end; nothing is dialled without."""

    def __init__(self, transport: Transport, agent: str, model: Callable[[], ModelRef | None]) -> None:
        self._transport = transport
        self._agent = agent
        self._model = model
        self._borrowed: Dialler | None = None
        self._own: tuple[ModelRef, Dialler] | None = None

    async def get(self, peer_id: str, maddrs: Sequence[str] = ()) -> NodeLink:
        """See ``Dialler.get``."""
        if self._borrowed is not None:
            return await self._borrowed.get(peer_id, maddrs)
        model = self._model()
        if model is None:
            raise StreamClosedError("the node has no model yet")
        if self._own is None or self._own[0] != model:
            await self.close()
            self._own = model, Dialler(self._transport, model, self._agent)
        return await self._own[1].get(peer_id, maddrs)

    async def follow(self, links: Dialler | None) -> None:
        """Use the links of a span that is served now; None: it is no more."""
        self._borrowed = links
        if links is not None:
            await self.close()

    async def close(self) -> None:
        """End the links of its own. Idempotent."""
        own, self._own = self._own, None
        if own is not None:
            await own[1].close()
