"""A node as the swarm sees it: what it announces, and its links to others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from ...dht.joining.network import Network, network_event
from ...swarm.errors import ErrorCode, NetworkError, StreamClosedError
from ...swarm.links.dialler import Dialler
from ...swarm.links.link import NodeLink
from ...swarm.links.message_stream import Connection
from ...swarm.protocol.messages import ErrorMessage
from ...swarm.protocol.wire import PROTOCOL_ID
from ...swarm.runtime.tasks import end
from ...swarm.transport.interface import NetworkChange, NetworkRestored, Stream, StreamHandler, Transport
from ...swarm.types import ModelRef, NodeInfo
from .announcer import Announcer
from .copied_identity import CopyWatch
from .events import Emit
from .link_probe import LinkProbe
from .read_back import ReadBack


class NodeLinks:
    """A node's links to others: those of the span's own chains while there is one, else a few of its own.
    ``model``: what is asked for at the other end; nothing is dialled without."""

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


LOOK_WHERE_S = 20.0
"""Seconds between looks at our own addresses, which change with the computer's networks."""
AGENT = f"swarm-node/{version('swarm-node')}"


class Presence:
    """Made by ``begin``. ``maddrs`` and ``direct_maddrs``: where others can dial it. ``announcer``, ``links``
    and ``probe`` are the node's own, for any blocks."""

    def __init__(
        self,
        network: Network,
        announcement: Callable[[], NodeInfo | None],
        model: Callable[[], ModelRef | None],
        emit: Emit,
        announce_s: float,
        identity: Path | None = None,
    ) -> None:
        """Use ``begin``."""
        self.network = network
        self.maddrs: tuple[str, ...] = ()
        self.direct_maddrs: tuple[str, ...] = ()
        self.announcer = Announcer(network.directory, announcement, announce_s)
        self.read_back = ReadBack(network.directory, emit, self.announcer.announce_now)
        self.copies = CopyWatch(network.directory, identity, emit, self.announcer.announce_now)
        self.links = NodeLinks(network.transport, AGENT, model)
        self.probe = LinkProbe(network.directory, self.links, announcement)
        self._emit = emit
        self._moved = asyncio.Event()

    @classmethod
    async def begin(
        cls,
        network: Network,
        announcement: Callable[[], NodeInfo | None],
        model: Callable[[], ModelRef | None],
        emit: Emit,
        announce_s: float,
        identity: Path | None = None,
    ) -> Presence:
        """``announcement``: None while there is nothing to announce. ``emit(event, **details)`` tells what
        happens to the network. ``identity``: its file. Nothing is announced before ``run``."""
        presence = cls(network, announcement, model, emit, announce_s, identity)
        await presence._look_where()
        network.watch(presence._on_network)
        return presence

    async def serve(self, handler: StreamHandler) -> None:
        await self.network.transport.serve(PROTOCOL_ID, handler)

    async def run(self) -> None:
        """Announce and measure links until cancelled."""
        self.network.on_peer(self._on_peer)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.announcer.run())
            tasks.create_task(self.read_back.run())
            tasks.create_task(self.copies.run())
            tasks.create_task(self._follow_addresses())
            probing: asyncio.Task[None] | None = None
            while True:
                await self._moved.wait()
                self._moved.clear()
                await end(probing)
                probing = tasks.create_task(self.probe.run())

    async def follow(self, links: Dialler | None) -> None:
        """Use the links of the span that is served from now on; None: none is any more."""
        await self.links.follow(links)
        if links is not None:
            self._moved.set()  # to be measured soon: clients shall know where it is in a route

    async def withdraw(self) -> None:
        """Take the announcement back; not where it is another process's that was there before us."""
        if self.copies.error is None:
            await self.announcer.withdraw()

    async def close(self) -> None:
        """End the node's own links. Neither withdraws nor closes the network."""
        await self.links.close()

    def _on_peer(self, peer_id: str) -> None:
        self.announcer.announce_now()  # to the directory that it may have brought with it
        self._emit("peer_found", found=peer_id)

    async def _follow_addresses(self) -> None:
        while True:
            await asyncio.sleep(LOOK_WHERE_S)
            with suppress(NetworkError):  # while our daemon is started again
                if await self._look_where():
                    self.announcer.announce_now()

    async def _look_where(self) -> bool:
        """Find out where we can be dialled now: the computer may have moved. Whether that has changed."""
        before = {*self.maddrs, *self.direct_maddrs}
        self.maddrs = await self.network.transport.maddrs()
        self.direct_maddrs = await self.network.direct_maddrs()
        return before != {*self.maddrs, *self.direct_maddrs}

    async def _on_network(self, change: NetworkChange) -> None:
        if isinstance(change, NetworkRestored):
            await self._look_where()
            self.announcer.announce_now()
        event, details = network_event(change)
        self._emit(event, **details)


async def reject(stream: Stream) -> None:
    """Tell a client that there is nothing here for it at the moment."""
    message, hint = "this node serves no blocks now", "Use another peer; this one may come back."
    await Connection(stream).close_with(ErrorMessage(None, None, ErrorCode.DRAINING, message, True, hint))
