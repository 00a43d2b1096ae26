"""A peer of the soak test that means harm, or is broken: everything it sends, a stranger could."""

from __future__ import annotations

import asyncio
import random
import struct
from collections import Counter
from collections.abc import Sequence
from typing import Any

import uvloop

from swarm_node.swarm.codecs.kinds import NONE
from swarm_node.swarm.errors import NetworkError
from swarm_node.swarm.protocol.messages import Close, Open, Ping, Step, Want
from swarm_node.swarm.protocol.wire import PROTOCOL_ID
from swarm_node.swarm.transport.p2pd.transport import P2pdTransport
from swarm_node.swarm.types import Span

from ..hostile_bytes import HELLO, OVERSIZE, hostile_streams, to_bytes, valid_opening
from ..processes.parent import next_order, tell

AT_ONCE = 4
HOLD_S = (0.05, 2.0)
"""How long a stream is left as it is, shortest and longest."""
STEP_TOKENS = 64
NOT_NUMBERS = (float("nan"), float("inf"), -float("inf"), 3.0e38)


def hostile_peer(**options: Any) -> dict[str, int]:
    """Until the parent says stop; how often each was done."""
    return uvloop.run(_hostile_peer(**options))


async def _hostile_peer(*, nodes: Sequence[dict[str, Any]], width: int, seed: int) -> dict[str, int]:
    peers = [HostilePeer(node, width, random.Random(seed + n)) for n, node in enumerate(nodes)]
    tell("ready")
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(peer.run()) for peer in peers]
        await next_order()
        for peer in peers:
            peer.stop()
    return dict(sum((task.result() for task in running), Counter()))


class HostilePeer:
    """One identity and one target. ``node``: the event that said it is online. ``width``: of the model's
    activations."""

    def __init__(self, node: dict[str, Any], width: int, rng: random.Random) -> None:
        self._peer_id: str = node["peer_id"]
        self._maddrs: list[str] = node["maddrs"]
        self._span = Span.parse(node["blocks"])
        self._width = width
        self._rng = rng
        self._garbage = hostile_streams(rng, self._span)
        self._done: Counter[str] = Counter()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> Counter[str]:
        while not self._stopping.is_set():  # a new identity now and then
            transport = await P2pdTransport.create(initial_peers=self._maddrs, client_mode=True)
            try:
                for _ in range(20):
                    async with asyncio.TaskGroup() as group:
                        for _ in range(AT_ONCE):
                            group.create_task(self._one(transport))
                    if self._stopping.is_set():
                        break
            finally:
                await transport.close()
        return self._done

    async def _one(self, transport: P2pdTransport) -> None:
        doings = (
            *(self.garbage, self.half_a_frame, self.oversize, self.unknown_session, self.silence),
            *(self.never_read, self.not_numbers, self.hoard, self.foreign_prefix),
        )
        doing = self._rng.choice(doings)
        try:
            stream = await transport.open_stream(self._peer_id, PROTOCOL_ID, self._maddrs)
        except (NetworkError, TimeoutError):
            self._done["could not dial"] += 1
            await asyncio.sleep(0.1)
            return
        try:
            # A node that does not read leaves the rest in our buffers: nothing to wait for.
            stream.write([doing()])
            if doing in (self.never_read, self.silence, self.half_a_frame):
                await asyncio.sleep(self._hold())
            else:
                async with asyncio.timeout(self._hold()):
                    while await stream.read():
                        pass
        except (TimeoutError, NetworkError):
            pass
        finally:
            stream.close()
            self._done[doing.__name__] += 1
            tell("did")

    def _hold(self) -> float:
        return self._rng.uniform(*HOLD_S)

    # What is written to a new stream.

    def garbage(self) -> bytes:
        return next(self._garbage)

    def half_a_frame(self) -> bytes:
        opening = valid_opening(self._rng, self._span)
        return opening[: self._rng.randrange(1, len(opening))]

    def oversize(self) -> bytes:
        return to_bytes(HELLO) + OVERSIZE

    def silence(self) -> bytes:
        return b""

    def unknown_session(self) -> bytes:
        session = self._rng.randbytes(16)
        return to_bytes(HELLO, self._step(session, 0, 1), Close(session), Ping(self._rng.randrange(1 << 30)))

    def never_read(self) -> bytes:
        """Much work whose results are asked for in full, and never read."""
        session = self._rng.randbytes(16)
        steps = [self._step(session, number, STEP_TOKENS) for number in range(8)]
        return to_bytes(HELLO, self._open(session, 8 * STEP_TOKENS), *steps)

    def not_numbers(self) -> bytes:
        """Activations that are no numbers: they must not outlive their session in the KV cache."""
        session = self._rng.randbytes(16)
        value = struct.pack("<f", self._rng.choice(NOT_NUMBERS))
        payload = value * (NONE.payload_bytes(STEP_TOKENS, self._width) // 4)
        return to_bytes(HELLO, self._open(session, STEP_TOKENS), self._step(session, 0, STEP_TOKENS, payload))

    def hoard(self) -> bytes:
        """Sessions upon sessions, left open when the stream ends."""
        opens = [self._open(self._rng.randbytes(16), self._rng.randrange(1, 512)) for _ in range(20)]
        return to_bytes(HELLO, *opens)

    def foreign_prefix(self) -> bytes:
        """Prefixes of others, and forks of sessions that are not there."""
        chain = tuple(self._rng.randbytes(32) for _ in range(4))
        session = self._rng.randbytes(16)
        return to_bytes(
            HELLO,
            self._open(session, 256, prefix=chain),
            self._open(self._rng.randbytes(16), 256, parent=self._rng.randbytes(16), parent_tokens=5),
            self._step(session, 0, STEP_TOKENS),
            Close(session, prefix=chain),
        )

    def _open(self, session: bytes, max_tokens: int, **more: Any) -> Open:
        return Open(
            session=session, span=self._span, max_tokens=max_tokens, codec="none", reply_codec="none", **more
        )

    def _step(self, session: bytes, number: int, tokens: int, payload: bytes | None = None) -> Step:
        return Step(
            session=session,
            step=number,
            position=number * tokens,
            tokens=tokens,
            want=Want.ALL,
            payload=payload or bytes(NONE.payload_bytes(tokens, self._width)),
        )
