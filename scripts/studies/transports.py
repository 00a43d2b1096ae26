"""What a stream costs, by transport, in time and processor time: dialling, echo, bulk, a hundred at once.

    scripts/study transports                         every pair below, a table
    scripts/study transports --pairs python:p2pd     one of them (client:server)
    scripts/study transports --generate MODEL        tokens/s of an answer, by who has p2pd and who has not

``python`` is our pure-Python transport, ``p2pd`` the one over go-libp2p's daemon, ``trio`` py-libp2p's own
host in its own event loop, and ``guest`` the same in trio's guest mode on an asyncio loop. Client and server
are processes of their own on 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

import psutil

from ..lab.command_line import script_parser
from ..lab.processes.child import ProcessFailedError
from ..lab.processes.parent import tell
from ..lab.processes.worker import Worker

ECHO, SINK = "/bench/echo/1", "/bench/sink/1"
PAIRS = ("p2pd:p2pd", "python:python", "python:p2pd", "p2pd:python", "trio:trio", "trio:p2pd", "guest:guest")
ECHOES, BULK, STREAMS, STREAM_ECHOES = 3000, 64 << 20, 100, 20
ROW = 700
"""Bytes of a frame with the row of one token, of a small model in 8 bits."""
PIECE = 256 * 1024


class Bench:
    """The measurements, over ``open(protocol)`` that gives an object with read, write and close."""

    def __init__(self, open_stream: Callable[[str], Awaitable[Any]], server: int) -> None:
        """``server``: the other side's process, whose processor time counts as well."""
        self._open = open_stream
        self._pids = [os.getpid(), server]

    async def run(self) -> dict[str, float]:
        began = time.perf_counter()
        stream = await self._open(ECHO)
        found = {"dial_ms": (time.perf_counter() - began) * 1e3}
        began = time.perf_counter()
        second = await self._open(ECHO)
        found["open_ms"] = (time.perf_counter() - began) * 1e3
        await second.close()
        for size in (ROW, 16 * 1024):
            spent = processor_seconds(self._pids)
            times = sorted([await self._echo(stream, size) for _ in range(ECHOES)])
            found[f"echo_{size}_ms"] = statistics.median(times) * 1e3
            found[f"echo_{size}_p99_ms"] = times[len(times) * 99 // 100] * 1e3
            found[f"echo_{size}_processor_ms"] = (processor_seconds(self._pids) - spent) / ECHOES * 1e3
        await stream.close()
        spent = processor_seconds(self._pids)
        found["one_way_mb_s"] = await self._bulk()
        found["one_way_mb_processor_ms"] = (processor_seconds(self._pids) - spent) / (BULK / 1e6) * 1e3
        found["100_streams_echo_per_s"] = await self._many()
        return found

    async def _echo(self, stream: Any, size: int) -> float:
        began = time.perf_counter()
        await stream.write(bytes(size))
        missing = size
        while missing:
            missing -= len(await stream.read(missing))
        return time.perf_counter() - began

    async def _bulk(self) -> float:
        stream = await self._open(SINK)
        began = time.perf_counter()
        for _ in range(BULK // PIECE):
            await stream.write(bytes(PIECE))
        await stream.read(1)  # all of it has arrived
        await stream.close()
        return BULK / 1e6 / (time.perf_counter() - began)

    async def _many(self) -> float:
        streams = [await self._open(ECHO) for _ in range(STREAMS)]
        began = time.perf_counter()

        async def use(stream: Any) -> None:
            for _ in range(STREAM_ECHOES):
                await self._echo(stream, 1024)

        await gather([lambda stream=stream: use(stream) for stream in streams])  # type: ignore[misc]
        seconds = time.perf_counter() - began
        for stream in streams:
            await stream.close()
        return STREAMS * STREAM_ECHOES / seconds


async def gather(works: list[Callable[[], Awaitable[None]]]) -> None:
    if in_trio():
        import trio

        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(work)
    else:
        await asyncio.gather(*(work() for work in works))


def in_trio() -> bool:
    import sniffio

    try:
        return sniffio.current_async_library() == "trio"
    except sniffio.AsyncLibraryNotFoundError:
        return False


# Our transports.


class Ours:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def read(self, size: int) -> bytes:
        data: bytes = await self._stream.read(size)
        return data

    async def write(self, data: bytes) -> None:
        self._stream.write([data])
        await self._stream.drain()

    async def close(self) -> None:
        self._stream.close()


async def echo(stream: Any) -> None:
    while data := await stream.read(1 << 18):
        await stream.write(data)


async def sink(stream: Any) -> None:
    missing = BULK
    while missing and (data := await stream.read(1 << 18)):
        missing -= len(data)
    await stream.write(b".")
    await stream.read(1)


async def ours(stack: str, target: str, server: int) -> None:
    if stack == "p2pd":
        from swarm_node.swarm.transport.p2pd.transport import P2pdTransport as Transport
    else:
        from swarm_node.swarm.transport.direct.transport import DirectTransport as Transport  # type: ignore[assignment]
    transport = await Transport.create(client_mode=bool(target))
    if target:
        peer_id = target.rpartition("/")[2]

        async def open_stream(protocol: str) -> Ours:
            return Ours(await transport.open_stream(peer_id, protocol, [target]))

        tell("measured", **await Bench(open_stream, server).run())
    else:
        await transport.serve(ECHO, lambda stream: echo(Ours(stream)))
        await transport.serve(SINK, lambda stream: sink(Ours(stream)))
        tell("listening", maddr=(await transport.maddrs())[0])
        await asyncio.to_thread(sys.stdin.read)
    await transport.close()


# py-libp2p's own host.


class Theirs:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def read(self, size: int) -> bytes:
        from libp2p.network.stream.exceptions import StreamEOF, StreamReset

        try:
            data: bytes = await self._stream.read(size)
        except (StreamEOF, StreamReset):
            return b""
        return data

    async def write(self, data: bytes) -> None:
        await self._stream.write(data)

    async def close(self) -> None:
        await self._stream.close()


async def theirs(target: str, server: int) -> None:
    import secrets

    import trio
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
    from libp2p.custom_types import TProtocol
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from libp2p.security.noise.transport import PROTOCOL_ID, Transport
    from multiaddr import Multiaddr

    keys = create_new_key_pair(secrets.token_bytes(32))
    noise = Transport(keys, create_noise_key().private_key)
    host = new_host(key_pair=keys, sec_opt={PROTOCOL_ID: noise}, muxer_preference="YAMUX")
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        if target:
            info = info_from_p2p_addr(Multiaddr(target))

            async def open_stream(protocol: str) -> Theirs:
                await host.connect(info)
                return Theirs(await host.new_stream(info.peer_id, [TProtocol(protocol)]))

            tell("measured", **await Bench(open_stream, server).run())
        else:
            host.set_stream_handler(TProtocol(ECHO), lambda stream: echo(Theirs(stream)))
            host.set_stream_handler(TProtocol(SINK), lambda stream: sink(Theirs(stream)))
            tell("listening", maddr=str(host.get_addrs()[0]))
            await trio.to_thread.run_sync(sys.stdin.read)


def as_guest(target: str, server: int) -> None:
    import trio
    import uvloop

    async def host() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        trio.lowlevel.start_guest_run(
            theirs,
            target,
            server,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        (await done).unwrap()

    uvloop.run(host())


# The parent.


def take_part(*, stack: str, target: str, server: int) -> None:
    """Serve, or measure from here to ``target``, of the process ``server``."""
    if stack == "trio":
        import trio

        trio.run(theirs, target, server)
    elif stack == "guest":
        as_guest(target, server)
    else:
        import uvloop

        uvloop.run(ours(stack, target, server))


def measure(client: str, server: str) -> dict[str, Any]:
    role = "scripts.studies.transports:take_part"
    with closing(Worker(role, stack=server, target="", server=0)) as serving:
        target = serving.wait_for("listening")["maddr"]
        with closing(Worker(role, stack=client, target=target, server=serving.process.pid)) as measuring:
            try:
                found = measuring.wait_for("measured", timeout=300)
            except ProcessFailedError:
                return {"failed": 1.0, "why": measuring.stderr.strip()[-300:]}
            return {name: value for name, value in found.items() if name != "event"}


def best_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The best of each figure: other work can only make one worse."""
    good = [run for run in runs if "failed" not in run]
    if not good:
        return runs[0]
    return {name: (min if name.endswith("_ms") else max)(run[name] for run in good) for name in good[0]}


def measure_answers(model: str, tokens: int) -> None:
    """Best and median of five answers, and the processor time that all processes together took for a token,
    which depends less on what else the machine does."""
    from swarm_node.client import SwarmModel

    from ..lab.local_swarm import LocalSwarm, split_evenly

    for light in (False, True):
        options = ["--threads", "1", "--kv-cache-tokens", "8192", *(["--pure-python"] if light else [])]
        with LocalSwarm(model, split_evenly(block_count(model), 2), serve_options=options) as swarm:
            nodes = [node.process.pid for node in swarm.nodes]
            for pure in (False, True):
                with SwarmModel.connect(
                    model=model, initial_peers=swarm.initial_peers, mdns=False, threads=1, pure_python=pure
                ) as client:
                    rates, firsts, spent = [], [], []
                    for _ in range(5):
                        before = processor_seconds([*nodes, os.getpid()])
                        done = client.generate_detailed(
                            "Once", raw=True, ignore_eos=True, max_new_tokens=tokens, speculate="off"
                        )
                        spent.append((processor_seconds([*nodes, os.getpid()]) - before) / tokens)
                        rates.append(done.timings.tokens_per_s)
                        firsts.append(done.timings.first_token_s)
                serving = "light nodes" if light else "nodes with p2pd"
                who = f"{serving}, client {'without' if pure else 'with'} fallback"
                print(
                    f"{who:44} {max(rates):6.1f} tokens/s at best, {statistics.median(rates):6.1f} median, "
                    f"first token {min(firsts) * 1e3:.0f} ms, processor {min(spent) * 1e3:.2f} ms a token",
                    flush=True,
                )


def processor_seconds(pids: list[int]) -> float:
    """Of these processes and their children, the daemons."""
    processes = [each for pid in pids for each in (psutil.Process(pid), *psutil.Process(pid).children())]
    unique = {each.pid: each for each in processes}.values()
    return sum(sum(each.cpu_times()[:2]) for each in unique)


def block_count(model: str) -> int:
    from swarm_node.shards.checkpoint.opening import open_checkpoint

    with open_checkpoint(model) as checkpoint:
        return checkpoint.config.n_blocks


def main() -> int:
    parser = script_parser("study transports", __doc__)
    parser.add_argument("--pairs", nargs="+", default=PAIRS)
    parser.add_argument("--repeat", type=int, default=3, help="runs, of which the best counts (%(default)s)")
    parser.add_argument("--generate", metavar="MODEL")
    parser.add_argument("--tokens", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.generate:
        measure_answers(arguments.generate, arguments.tokens)
    else:
        for pair in arguments.pairs:
            found = best_of([measure(*pair.split(":")) for _ in range(arguments.repeat)])
            told = ", ".join(
                f"{name} {value:.3g}" if isinstance(value, float) else str(value)
                for name, value in found.items()
            )
            print(f"{pair:14} {told}", flush=True)
    return 0
