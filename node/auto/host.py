"""What ``auto.AutoBlocks`` does to a node, and learns from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from ...swarm.types import NodeInfo, NodeState, PeerLink, Span
from ..config import EventName
from ..node import Node
from ..presence.liveness import Liveness
from ..resources import usable_memory
from .machine import MeasuredMachine


class AutoHost:
    """The node, as far as its blocks go. ``machine``: its speeds are announced until a span is loaded."""

    def __init__(
        self, node: Node, machine: MeasuredMachine, measure: Callable[[], Awaitable[MeasuredMachine]]
    ) -> None:
        self._node = node
        self._machine = machine
        self._measure = measure
        self._liveness = Liveness(node.presence.links, node.presence.probe.observed)
        self._max_blocks = 0
        node.amend.append(self._amend)

    @property
    def peer_id(self) -> str:
        return self._node.peer_id

    @property
    def span(self) -> Span | None:
        return self._node.span

    @property
    def is_serving(self) -> bool:
        return self._node.loaded is not None

    async def living_nodes(self) -> list[NodeInfo]:
        """Announcements of the model, this node's too, but for nodes that do not answer.
        Their round trips are measured on the way. Raises NetworkError."""
        node = self._node
        if node.model is None:
            return []
        nodes = await node.directory.nodes(node.model)
        return await self._liveness.living(nodes, node.peer_id, waits=not self.is_serving)

    def links(self) -> tuple[PeerLink, ...]:
        """Measured round trips to others."""
        return self._node.presence.probe.links()

    async def announce_intent(self, span: Span, max_blocks: int) -> None:
        """Announce JOINING with ``span``. ``max_blocks`` 0: it is decided, and being loaded."""
        self._max_blocks = max_blocks
        await self._node.announce_as(NodeState.JOINING, span)

    async def stand_by(self) -> None:
        """Take the announcement back."""
        await self._node.announce_as(NodeState.JOINING, None)

    async def start_draining(self) -> None:
        """Announce DRAINING; open sessions go on, and so would new ones."""
        await self._node.announce_as(NodeState.DRAINING, self._node.span)

    async def resume(self) -> None:
        """Announce ONLINE again after ``start_draining``."""
        await self._node.announce_as(NodeState.ONLINE, self._node.span)

    async def load(self, span: Span) -> None:
        """Raises SwarmError, MemoryShortError among them; nothing is loaded then."""
        await self._node.load(span)

    async def go_online(self, max_blocks: int) -> None:
        """Announce ONLINE; with ``max_blocks`` that it could hold, others plan."""
        self._max_blocks = max_blocks
        await self._node.go_online()

    async def unload(self) -> None:
        """Drain, and give the memory back."""
        await self._node.unload()

    async def remeasure(self) -> None:
        """Bring the announced speed of the span that is served up to date."""
        if self._node.loaded is not None:
            await self._node.loaded.remeasure()

    async def measure(self) -> MeasuredMachine:
        """Measure what the machine could do anew; asked while nothing is loaded. Raises SwarmError."""
        self._machine = await self._measure()
        return self._machine

    def usable_memory(self) -> int:
        """Bytes that weights and KV cache may take; asked while nothing is loaded."""
        return usable_memory(self._machine.device, self._node.config.memory)

    def emit(self, event: EventName, /, **details: object) -> None:
        self._node.emit(event, **details)

    def _amend(self, info: NodeInfo) -> NodeInfo:
        info = replace(info, max_blocks=self._max_blocks)
        if self._node.loaded is not None:
            return info
        return replace(
            info,
            decode_ms_per_block=self._machine.decode_ms_per_block * self._machine.shape.mean_time(info.span),
            prefill_tokens_per_s=self._machine.prefill_tokens_per_s / len(info.span),
        )
