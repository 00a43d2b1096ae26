"""Bytes that no client of ours sends, thrown at a live node while it serves somebody else correctly."""

from __future__ import annotations

import asyncio
import random

import pytest

from scripts.lab.hostile_bytes import hostile_streams
from scripts.lab.local_swarm import LocalSwarm
from swarm_node.client import SwarmModel
from swarm_node.swarm.errors import NetworkError
from swarm_node.swarm.protocol.wire import PROTOCOL_ID, FrameParser
from swarm_node.swarm.transport.p2pd.transport import P2pdTransport
from swarm_node.swarm.types import Span

pytestmark = [pytest.mark.swarm, pytest.mark.model]

PROMPT = "Count from 1 to 20."
ROUNDS = 60
"""Streams of garbage thrown at the node while it serves."""


async def _throw(swarm: LocalSwarm) -> int:
    """Throw garbage at the first node; returns how many streams were answered with whole frames."""
    target = swarm.nodes[0].events[-1]
    transport = await P2pdTransport.create(initial_peers=target["maddrs"], client_mode=True)
    answered = 0
    try:
        streams = hostile_streams(random.Random(7), Span(0, 2))
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
            answers.append(await model.agenerate_detailed(PROMPT, max_new_tokens=32, ignore_eos=True))
        assert await throwing > 0, "the node answered some of it with typed frames"
        assert answers
        for answer in answers:
            assert answer.token_ids == undisturbed.token_ids
            assert answer.repaired == ()
    assert all(node.process.poll() is None for node in exact_swarm.nodes)
    assert "Traceback" not in exact_swarm.nodes[0].stderr
