"""Bytes that no client of ours sends, thrown at a live node while it serves somebody else correctly."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest
from local_swarm import LocalSwarm

from swarm_node.client import SwarmModel
from swarm_node.swarm.errors import NetworkError
from swarm_node.swarm.messages import Hello, Open, encode
from swarm_node.swarm.p2pd import P2pdTransport
from swarm_node.swarm.types import Span
from swarm_node.swarm.wire import PROTOCOL_ID, FrameParser, encode_frame

pytestmark = [pytest.mark.swarm, pytest.mark.model]

PROMPT = "Count from 1 to 20."
ROUNDS = 60
"""Streams of garbage thrown at the node while it serves."""


def _valid_opening(rng: random.Random) -> bytes:
    hello = Hello(versions=(1,), digest="", codecs=("none", "int8"), max_frame=1 << 20, agent="fuzz")
    opening = Open(
        session=rng.randbytes(16), span=Span(0, 2), max_tokens=64, codec="none", reply_codec="none"
    )
    return b"".join(bytes(part) for message in (hello, opening) for part in encode_frame(encode(message)))


def _hostile(rng: random.Random) -> Iterator[bytes]:
    """Endless streams: noise, damaged openings, cut frames, and valid openings with noise behind them."""
    while True:
        opening = _valid_opening(rng)
        match rng.randrange(5):
            case 0:
                yield rng.randbytes(rng.randrange(1, 4096))
            case 1:
                position = rng.randrange(len(opening))
                yield opening[:position] + rng.randbytes(1) + opening[position + 1 :]
            case 2:
                yield opening[: rng.randrange(1, len(opening))]
            case 3:
                yield opening + rng.randbytes(rng.randrange(1, 1024))
            case _:  # a frame that claims to be larger than anything allowed
                yield b"SW" + bytes([7, 0]) + b"\xff\xff" + b"\xff\xff\xff\xff" + rng.randbytes(64)


async def _throw(swarm: LocalSwarm) -> int:
    """Throw garbage at the first node; returns how many streams were answered with whole frames."""
    target = swarm.nodes[0].events[-1]
    transport = await P2pdTransport.create(initial_peers=target["maddrs"], client_mode=True)
    answered = 0
    try:
        streams = _hostile(random.Random(7))
        for _ in range(ROUNDS):
            try:
                stream = await transport.open_stream(target["peer_id"], PROTOCOL_ID, target["maddrs"])
                stream.write([next(streams)])
                parser = FrameParser(1 << 20)
                async with asyncio.timeout(0.25):
                    while data := await stream.read():
                        parser.receive(data)
                        while parser.next_frame() is not None:
                            answered += 1
            except (TimeoutError, NetworkError):
                pass  # a node may close such a stream, or wait for the rest of a cut frame
            finally:
                stream.close()
    finally:
        await transport.close()
    return answered


async def test_garbage_hurts_nobody_else(exact_swarm: LocalSwarm) -> None:
    with SwarmModel.connect(
        model=exact_swarm.model, initial_peers=exact_swarm.initial_peers, wire_codec="none", dtype="float32"
    ) as model:
        undisturbed = model.generate_detailed(PROMPT, max_new_tokens=32, ignore_eos=True)
        throwing = asyncio.create_task(_throw(exact_swarm))
        answers = []
        while not throwing.done():
            answers.append(
                await model.agenerate_detailed(PROMPT, max_new_tokens=32, ignore_eos=True),
            )
        assert await throwing > 0, "the node answered some of it with typed frames"
        assert answers
        for answer in answers:
            assert answer.token_ids == undisturbed.token_ids
            assert answer.repairs == 0
    assert all(node.process.poll() is None for node in exact_swarm.nodes)
    assert "Traceback" not in exact_swarm.nodes[0].stderr
