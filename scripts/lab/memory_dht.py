"""A DHT inside one process: the calls of hivemind's ``P2P`` without sockets, in time that only jumps."""

from __future__ import annotations

import asyncio
import random
import selectors
import time
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

from hivemind.p2p import PeerID

from swarm_node.swarm.errors import PeerUnreachableError

Handler = Callable[[Any, Any], Awaitable[Any]]
UNKNOWN_PEER_S = 0.5
"""Seconds in which a daemon finds that nobody knows a peer."""


class _Jump(selectors.SelectSelector):
    """Waits for nothing: where others would sleep, the clock moves on."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout:
            self.now += timeout
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose seconds take no time."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


class CallNetwork:
    """Everybody's handlers, and how long a call takes: half a round trip of 20 to 150 ms each way."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.handlers: dict[str, dict[str, Handler]] = {}
        self.addresses: dict[str, str] = {}
        self.calls = 0
        self._start = time.time()

    def clock(self) -> float:
        """Unix time."""
        return self._start + asyncio.get_running_loop().time()

    def steady(self) -> float:
        return asyncio.get_running_loop().time()

    def join(self, peer_id: str, host: str) -> MemoryP2P:
        """``host``: an IPv4 address."""
        self.handlers[peer_id] = {}
        self.addresses[peer_id] = f"/ip4/{host}/tcp/4001"
        return MemoryP2P(self, peer_id)

    def leave(self, peer_id: str) -> None:
        self.handlers.pop(peer_id, None)


class MemoryP2P:
    """One peer: what a directory uses of a transport and of its ``p2p``."""

    def __init__(self, network: CallNetwork, peer_id: str) -> None:
        self.peer_id = PeerID.from_base58(peer_id)
        self.p2p = self
        self._network = network
        self._name = peer_id

    async def add_protobuf_handler(self, name: str, handler: Handler, input_type: Any) -> None:
        self._network.handlers[self._name][name] = handler

    async def remove_protobuf_handler(self, name: str) -> None:
        self._network.handlers.get(self._name, {}).pop(name, None)

    async def call_protobuf_handler(self, peer_id: PeerID, name: str, request: Any, answer_type: Any) -> Any:
        network = self._network
        network.calls += 1
        half_s = network.rng.uniform(0.01, 0.075)
        handler = network.handlers.get(str(peer_id), {}).get(name)
        if handler is None:
            await asyncio.sleep(UNKNOWN_PEER_S)
            raise PeerUnreachableError(f"nobody knows {peer_id}")
        await asyncio.sleep(half_s)
        answer = await handler(request, SimpleNamespace(remote_id=self.peer_id))
        await asyncio.sleep(half_s)
        return answer

    async def connect(self, peer_id: str, maddrs: Sequence[str] = (), timeout: float = 5.0) -> None:
        if peer_id not in self._network.handlers:
            await asyncio.sleep(0.05)
            raise PeerUnreachableError(f"nobody listens as {peer_id}")

    async def remote_maddr(self, peer_id: str) -> str:
        return self._network.addresses.get(peer_id, "")

    def watch(self, watcher: Any) -> None:
        """Nothing here comes and goes."""
