"""Tokens per second of many streams, by the Python client and through the gateway, in turns."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import psutil
import uvloop

from ..lab.bench.clients import connected
from ..lab.bench.clients import read_stream as read_answer
from ..lab.command_line import script_parser
from ..lab.local_swarm import LocalSwarm, NodeProcess, split_evenly
from ..lab.processes.event_process import stop_all
from ..lab.processes.parent import next_order, tell
from ..lab.processes.worker import Worker
from ..lab.prompts import BLOCKS, MODEL, question

DESCRIPTION = """\
Starts a swarm, a gateway and an AsyncSwarmModel as processes of their own. Then the same prompts are
answered in turns by that client, and through the gateway as streams that this process reads. Greedy,
past end-of-text; a round's figure is all its tokens over the time until its last stream ends.
Processor time is the client's, or the gateway's.
"""


def main() -> int:
    options = parse_arguments()
    serve = ["--threads", "1", "--kv-cache-tokens", "32768"]
    with LocalSwarm(MODEL, split_evenly(BLOCKS, options.nodes), serve_options=serve) as swarm:
        peer = swarm.initial_peers[0]
        words = ["gateway", "--json", "--model", str(MODEL), "--port", "0", "--threads", str(options.threads)]
        words += ["--initial-peers", peer, "--speculate", "off"]
        gateway = NodeProcess(words)
        # A process like the gateway's: a busy machine's scheduler shall not tell them apart.
        client = Worker(
            "scripts.studies.gateway_overhead:answer_rounds",
            peer=peer,
            streams=options.streams,
            tokens=options.tokens,
            threads=options.threads,
        )
        try:
            url = gateway.wait_for("listening")["url"]
            client.wait_ready()
            report = uvloop.run(measure(options, client, gateway, url))
        finally:
            stop_all([gateway, client])
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        for way in ("client", "gateway"):
            rates = ", ".join(f"{rate:.1f}" for rate in report[way])
            cpu = statistics.median(report[f"{way}_cpu_ms"])
            print(
                f"{way:8} {statistics.median(report[way]):8.1f} tokens/s, {cpu:.3f} ms of processor a token"
            )
            print(f"         rounds: {rates}")
        print(f"overhead {report['overhead']:8.2%} (median of rounds)")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = script_parser("study gateway_overhead", DESCRIPTION)
    parser.add_argument("--streams", type=int, default=16, help="at once (%(default)s)")
    parser.add_argument("--tokens", type=int, default=96, help="of each answer (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="of each way (%(default)s)")
    parser.add_argument("--nodes", type=int, default=2, help="serving processes (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the head, each way (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser.parse_args()


async def measure(
    options: argparse.Namespace, client: Worker, gateway: NodeProcess, url: str
) -> dict[str, Any]:
    prompts = [question(number) for number in range(options.streams)]
    host, port = url.removeprefix("http://").rsplit(":", 1)
    rates: dict[str, list[float]] = {"client": [], "gateway": [], "client_cpu_ms": [], "gateway_cpu_ms": []}

    async def by_client() -> tuple[float, int]:
        client.order()
        event = await asyncio.to_thread(client.wait_for, "round")
        return event["rate"], event["tokens"]

    async def by_gateway() -> tuple[float, int]:
        return await one_round(lambda prompt: read_stream(host, int(port), prompt, options.tokens), prompts)

    ways = (("client", by_client, client), ("gateway", by_gateway, gateway))
    for number in range(options.rounds + 1):
        for way, ask, process in ways[:: -1 if number % 2 else 1]:
            cpu = cpu_ms(process.pid)
            rate, tokens = await ask()
            if number:  # the first warms caches and links
                rates[way].append(rate)
                rates[f"{way}_cpu_ms"].append((cpu_ms(process.pid) - cpu) / tokens)
    ratios = [gateway / client for client, gateway in zip(rates["client"], rates["gateway"], strict=True)]
    overhead = 1 - statistics.median(ratios)
    return {**rates, "overhead": overhead, "streams": options.streams, "tokens": options.tokens}


def cpu_ms(pid: int) -> float:
    return sum(psutil.Process(pid).cpu_times()[:2]) * 1000


def answer_rounds(**options: Any) -> None:
    uvloop.run(_answer_rounds(**options))


async def _answer_rounds(*, peer: str, streams: int, tokens: int, threads: int) -> None:
    """A round by the Python client for each order."""
    prompts = [question(number) for number in range(streams)]
    async with connected([peer], threads) as model:

        async def ask(prompt: str) -> int:
            run = await read_answer(model, prompt, tokens)
            if run.error:
                raise SystemExit(run.error)
            return run.tokens

        tell("ready")
        while await next_order() is not None:
            rate, read = await one_round(ask, prompts)
            tell("round", rate=rate, tokens=read)


async def one_round(ask: Callable[[str], Awaitable[int]], prompts: Sequence[str]) -> tuple[float, int]:
    """Tokens per second, and how many there were."""
    began = time.perf_counter()
    tokens = sum(await asyncio.gather(*map(ask, prompts)))
    return tokens / (time.perf_counter() - began), tokens


class _Reader(asyncio.Protocol):
    """Keeps the end of what comes: reading shall cost as little as it can."""

    def __init__(self, request: bytes) -> None:
        self.last = b""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.last = (self.last + data)[-2048:]

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set_result(None)


async def read_stream(host: str, port: int, prompt: str, tokens: int) -> int:
    """The tokens of an answer, as the stream's usage tells them."""
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    loop = asyncio.get_running_loop()
    _, reader = await loop.create_connection(lambda: _Reader((head + body).encode()), host, port)
    await reader.ended
    events = [line[6:] for line in reader.last.decode().splitlines() if line.startswith("data: {")]
    usage = json.loads(events[-1]).get("usage")
    if usage is None:
        raise SystemExit(f"an answer was cut off: {events[-1]}")
    return usage["completion_tokens"]
