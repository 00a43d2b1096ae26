"""The wide-area benchmark's controls: the same trips without our code, to see what the machine itself costs.

A ring of the client and every hop passes on as many bytes as a decoded token has, and each keeps its core and
its caches as busy as it was with a token. Once over plain sockets: what is beyond the bound is then the
kernel's and the emulation's. Once over direct streams: the difference is encryption, yamux and asyncio.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import uvloop

from ..processes.parent import next_order, tell
from ..processes.worker import Worker, workers
from .network import WanLab

KINDS = ("sockets", "streams")
PROTOCOL = "/swarm-node-control/1"
SPENT = struct.Struct("!d")
"""At the begin of what goes round: the seconds that machines have kept busy so far."""
PIECE = 1 << 17
"""Floats read between two looks at the clock: 1 MiB."""
BUFFER = 24
"""Pieces, more than a core's own caches hold, as a hop's weights are."""
WARM_UP = 8
"""Trips that are not counted."""
TURN_S = 60.0
"""A ring that has not closed by then is broken."""


class Ring:
    """Processes in the machines ``names``, of which the first is the client's, joined once and idle until
    ``measure``."""

    def __init__(self, workers: Sequence[Worker], plan: Path) -> None:
        self._client = workers[0]
        self._plan = plan

    def measure(self, busy_s: Sequence[float], row_bytes: int, trips: int) -> dict[str, float]:
        """Means over ``trips``: ``seconds`` of one, and ``busy_s`` of that, as all machines measured it.
        ``busy_s``: of the client, then of each hop."""
        self._plan.write_text(json.dumps({"busy_s": list(busy_s), "row_bytes": row_bytes, "trips": trips}))
        self._client.order()
        self._client.wait_ready()
        return dict(json.loads(self._plan.read_text()))


@contextmanager
def ring(lab: WanLab, names: Sequence[str], kind: str) -> Iterator[Ring]:
    """``names``: three or more, so that no two of them dial each other at once. ``kind``: one of KINDS."""
    with tempfile.TemporaryDirectory(prefix="swarm-node-ring-") as folder, ExitStack() as stack:
        started = []
        for number, name in enumerate(names):
            options = {
                "kind": kind,
                "folder": folder,
                "number": number,
                "machines": len(names),
                "host": lab.address(name),
            }
            with lab.inside(name):
                started += stack.enter_context(workers("scripts.lab.wan_lab.controls:take_part", [options]))
        for worker in started:
            worker.wait_ready()
        for worker in started:  # all can be dialled now
            worker.order()
        for worker in started:
            worker.wait_ready()
        yield Ring(started, Path(folder) / "plan")


# Inside a worker.


def take_part(*, kind: str, **options: Any) -> None:
    uvloop.run({"sockets": _by_sockets, "streams": _by_streams}[kind](**options))


async def _by_sockets(*, folder: str, number: int, machines: int, host: str) -> None:
    """Blocking sockets: nothing is faster from Python."""
    with socket.create_server((host, 0)) as server:
        _publish(folder, number, server.getsockname())
        tell("ready")
        await next_order()
        address, port = _published(folder, (number + 1) % machines)
        with socket.create_connection((address, port), TURN_S) as after:
            before, _ = server.accept()
            with before:
                for each in (before, after):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                tell("ready")
                part = _Part(Path(folder) / "plan", number)

                def receive(size: int) -> bytes:
                    data = b""
                    while len(data) < size:
                        if not (piece := before.recv(size - len(data))):
                            raise EOFError
                        data += piece
                    return data

                if number:
                    try:
                        while True:
                            size = int.from_bytes(receive(4))
                            after.sendall(part.kept_busy(receive(size)))
                    except EOFError:
                        return
                while True:
                    await part.wait()
                    for _ in part.trips():
                        after.sendall(part.kept_busy(part.first))
                        part.came(receive(int.from_bytes(receive(4))))


async def _by_streams(*, folder: str, number: int, machines: int, host: str) -> None:
    from swarm_node.swarm.transport.direct.transport import DirectTransport

    transport = await DirectTransport.create(host_maddrs=[f"/ip4/{host}/tcp/0"])
    streams: asyncio.Queue[Any] = asyncio.Queue()
    ended = asyncio.Event()

    async def accept(stream: Any) -> None:
        streams.put_nowait(stream)
        await ended.wait()

    try:
        await transport.serve(PROTOCOL, accept)
        _publish(folder, number, (transport.peer_id, list(await transport.maddrs())))
        tell("ready")
        await next_order()
        peer_id, maddrs = _published(folder, (number + 1) % machines)
        async with asyncio.timeout(TURN_S):
            after = await transport.open_stream(peer_id, PROTOCOL, maddrs)
            after.write([b"\0" * 4])  # a stream exists for the other side with its first bytes
            before = await streams.get()
        held = bytearray()

        async def receive() -> bytes:
            while True:
                while len(held) < 4 or len(held) < 4 + int.from_bytes(held[:4]):
                    if not (piece := await before.read()):
                        raise EOFError
                    held.extend(piece)
                size = int.from_bytes(held[:4])
                data = bytes(held[4 : 4 + size])
                del held[: 4 + size]
                if data:
                    return data

        tell("ready")
        part = _Part(Path(folder) / "plan", number)
        if number:
            try:
                while True:
                    after.write([part.kept_busy(await receive())])
            except EOFError:
                return
        while True:
            await part.wait()
            for _ in part.trips():
                after.write([part.kept_busy(part.first)])
                part.came(await receive())
    finally:
        ended.set()
        await transport.close()


class _Part:
    """What one machine does with what goes round. Its own busy time is in the message: the client's first,
    then each hop's."""

    def __init__(self, plan: Path, number: int) -> None:
        import numpy

        self._plan = plan
        self._number = number
        self._memory = numpy.ones((BUFFER, PIECE))
        self._sizes: dict[str, Any] = {}
        self._spent = 0.0
        self.first = b""

    async def wait(self) -> None:
        """For the parent's next plan; for ever, once it is gone: it kills this process."""
        if self._sizes:
            tell("ready")
        await next_order()
        self._sizes = json.loads(self._plan.read_text())
        busy_s = struct.pack(f"!{len(self._sizes['busy_s'])}d", *self._sizes["busy_s"])
        self.first = (SPENT.pack(0.0) + busy_s).ljust(self._sizes["row_bytes"], b"\0")

    def trips(self) -> Iterator[int]:
        """Count them, and write what they took where the parent finds it."""
        for number in range(WARM_UP):
            yield number
        self._spent = 0.0
        began = perf_counter()
        count = self._sizes["trips"]
        for number in range(count):
            yield number
        took_s = perf_counter() - began
        self._plan.write_text(json.dumps({"seconds": took_s / count, "busy_s": self._spent / count}))

    def came(self, data: bytes) -> None:
        self._spent += SPENT.unpack_from(data)[0]

    def kept_busy(self, data: bytes) -> bytes:
        """``data`` with its size before it, after as much reading of memory as it asks of this machine."""
        (spent,) = SPENT.unpack_from(data)
        (busy_s,) = SPENT.unpack_from(data, SPENT.size * (1 + self._number))
        began = now = perf_counter()
        row = 0
        while now < began + busy_s:
            self._memory[row % BUFFER].sum()
            row += 1
            now = perf_counter()
        return len(data).to_bytes(4) + SPENT.pack(spent + now - began) + data[SPENT.size :]


def _publish(folder: str, number: int, address: Any) -> None:
    Path(folder, str(number)).write_text(json.dumps(address))


def _published(folder: str, number: int) -> Any:
    return json.loads(Path(folder, str(number)).read_text())
