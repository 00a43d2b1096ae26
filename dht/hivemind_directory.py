"""The directory over a hivemind DHTNode (skeleton)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..swarm.identity import Identity
from ..swarm.types import ModelRef, NodeInfo
from .directory import TTL_S

if TYPE_CHECKING:
    from ..swarm.p2pd import P2pdTransport


class HivemindDirectory:
    @classmethod
    async def create(
        cls,
        transport: P2pdTransport,
        identity: Identity,
        initial_peers: Sequence[str] = (),
        *,
        client_mode: bool = False,
        ttl: float = TTL_S,
        clock: Callable[[], float] = time.time,
    ) -> HivemindDirectory:
        """Raises PeerUnreachableError if no initial peer answers, NetworkError if our clock is off."""
        raise NotImplementedError

    async def announce(self, info: NodeInfo) -> None: ...
    async def withdraw(self) -> None: ...
    async def nodes(self, model: ModelRef) -> list[NodeInfo]: ...
    async def models(self) -> list[ModelRef]: ...
    async def all_nodes(self) -> list[NodeInfo]: ...
    async def close(self) -> None: ...
