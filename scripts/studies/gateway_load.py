"""What clients of one gateway cost each other, and what several answers to one prompt cost."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from ..lab.command_line import script_parser
from ..lab.local_swarm import LocalSwarm, NodeProcess, split_evenly
from ..lab.processes.event_process import stop_all
from ..lab.prompts import BLOCKS, FILLER, MODEL, question

DESCRIPTION = """\
Starts a swarm and a gateway as processes of their own, and measures in one run:

  strangers  the longest pause of a running stream, and the time of a short answer: alone, while one client
             posts a text of 1.8 MB, and while 4 or 12 post texts of 2 MB again and again. All are refused.
  choices    one request with a long prompt that nobody holds yet, with n = 1, 2 and 8.
  beginnings eight requests at once that share a long system prompt: time to first token, tokens computed.
"""
LARGE, LARGER, SPACES = "ab " * 600_000, "ab " * 690_000, " " * 2_000_000
"""Texts that no context holds. Counting spaces in parts takes longest, since one token stands for many."""
SYSTEM_WORDS, LONG_WORDS = 950, 1400
"""Of prompts that do fit: about as many tokens."""
PARTS = ("strangers", "choices", "beginnings")

_numbers = itertools.count(int(time.time()))


def main() -> int:
    options = parse_arguments()
    serve = ["--threads", "1", "--kv-cache-tokens", "65536"]
    with LocalSwarm(MODEL, split_evenly(BLOCKS, options.nodes), serve_options=serve, overrides={}) as swarm:
        words = ["gateway", "--json", "--model", str(MODEL), "--port", "0", "--threads", "1"]
        words += ["--initial-peers", swarm.initial_peers[0], "--speculate", "off"]
        gateway = NodeProcess(words)
        try:
            url = gateway.wait_for("listening")["url"]
            host, port = url.removeprefix("http://").rsplit(":", 1)
            load = GatewayLoad(host, int(port), swarm)
            report = {part: asyncio.run(getattr(load, part)()) for part in options.parts}
        finally:
            stop_all([gateway])
    print(json.dumps(report, indent=2))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = script_parser("study gateway_load", DESCRIPTION)
    parser.add_argument("--nodes", type=int, default=2, help="serving processes (%(default)s)")
    parser.add_argument("parts", nargs="*", choices=PARTS, default=PARTS, help="what to measure (all)")
    return parser.parse_args()


class GatewayLoad:
    def __init__(self, host: str, port: int, swarm: LocalSwarm) -> None:
        self._host = host
        self._port = port
        self._swarm = swarm

    async def strangers(self) -> dict[str, Any]:
        await self._answer(chat(question(0), 8))  # links and caches are warm
        report: dict[str, Any] = {}
        cases = [("alone", 0, ""), ("one 1.8 MB", 1, LARGE), ("four 2 MB", 4, LARGER)]
        cases += [("four 2 MB of spaces", 4, SPACES), ("twelve 2 MB of spaces", 12, SPACES)]
        for name, posters, text in cases:
            report[name] = await self._beside(posters, text, again=posters > 1)
        return report

    async def _beside(self, posters: int, text: str, *, again: bool) -> dict[str, Any]:
        over = asyncio.Event()
        statuses: list[int] = []

        async def post() -> None:
            body = json.dumps(chat(text, 2)).encode()
            while not over.is_set():
                statuses.append(await self._status(body))
                if not again:
                    break

        pauses: list[float] = []
        posting: list[asyncio.Task[None]] = []
        last = None
        async for _ in self._lines({**chat("Write a long story.", 300), "stream": True}):
            now = time.perf_counter()
            if last is not None:
                pauses.append(now - last)
            last = now
            if len(pauses) == 60 and not posting:
                posting = [asyncio.create_task(post()) for _ in range(posters)]
        answers = [
            await timed(lambda number=number: self._answer(chat(question(number), 4))) for number in range(3)
        ]
        over.set()
        await asyncio.gather(*posting)
        return {
            "longest_pause_s": round(max(pauses), 3),
            "median_pause_s": round(statistics.median(pauses), 4),
            "answer_s": [round(seconds, 2) for seconds in answers],
            "statuses": sorted(set(statuses)),
            "posts": len(statuses),
        }

    async def choices(self) -> dict[str, Any]:
        report = {}
        for n in (1, 2, 8):
            prompt = f"{next(_numbers)}: " + prose(LONG_WORDS)
            before = self._computed()
            seconds = await timed(lambda n=n, prompt=prompt: self._answer({**chat(prompt, 8), "n": n}))
            report[f"n={n}"] = {"seconds": round(seconds, 2), "tokens_computed": self._computed() - before}
        return report

    async def beginnings(self) -> dict[str, Any]:
        report = {}
        for together in (1, 8):
            system = {"role": "system", "content": f"{next(_numbers)}: " + prose(SYSTEM_WORDS)}
            before = self._computed()

            async def first_token(number: int, system: dict[str, str] = system) -> float:
                body = {**chat(question(number), 8), "stream": True}
                body["messages"].insert(0, system)
                began, first = time.perf_counter(), 0.0
                async for _ in self._lines(body):
                    first = first or time.perf_counter() - began
                return first

            firsts = sorted(await asyncio.gather(*map(first_token, range(together))))
            report[f"{together} at once"] = {
                "first_token_s": [round(seconds, 2) for seconds in firsts],
                "tokens_computed": self._computed() - before,
            }
        return report

    def _computed(self) -> int:
        """Tokens that the first node has computed since it started."""
        return int(self._swarm.nodes[0].statistics()["engine"]["tokens"])

    async def _answer(self, body: dict[str, Any]) -> None:
        status = await self._status(json.dumps(body).encode())
        if status != 200:
            raise SystemExit(f"an answer failed with status {status}")

    async def _status(self, body: bytes) -> int:
        reader, writer = await self._post(body)
        try:
            head = await reader.readline()
            await reader.read()
            return int(head.split()[1])
        finally:
            writer.close()

    async def _lines(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """The events of a stream that hold text."""
        reader, writer = await self._post(json.dumps(body).encode())
        try:
            while line := await reader.readline():
                if b'"content":' in line and b'"content":""' not in line:
                    yield line
        finally:
            writer.close()

    async def _post(self, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        return reader, writer


def chat(text: str, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}


def prose(words: int) -> str:
    return FILLER * (words // len(FILLER.split()))


async def timed(work: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began
