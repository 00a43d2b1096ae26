"""Meeting a swarm: the first peer that answers is enough, and nobody waits for the others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from swarm_node.dht.delegated.directory import DelegatedDirectory
from swarm_node.dht.delegated.messages import (
    DELEGATED_MESSAGES,
    DELEGATED_PROTOCOL,
    MAX_FRAME,
    Entries,
    Get,
    Stored,
)
from swarm_node.swarm.errors import NetworkError, NotSpokenError, PeerUnreachableError, SwarmError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.links.message_stream import MessageStream
from swarm_node.swarm.transport.interface import Stream
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import ModelRef
from tests.doubles.clock import Clock
from tests.doubles.virtual_time import VirtualLoop, run

NOW = 1_700_000_000.0
MODEL = ModelRef("smol", "ab" * 32, 30)
NODES = [Identity(bytes([index + 1]) * 32) for index in range(4)]
READER = Identity(b"r" * 32)


class Peers:
    """Peers that answer after some seconds. ``asked``: how often each was."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.asked = dict.fromkeys(range(len(NODES)), 0)

    async def add(self, number: int, after_s: float, time: float = NOW, good: bool = True) -> None:
        async def handle(stream: Stream) -> None:
            messages: MessageStream[object] = MessageStream(stream, DELEGATED_MESSAGES, MAX_FRAME)
            assert isinstance(await messages.receive(), Get)
            self.asked[number] += 1
            await asyncio.sleep(after_s)
            await messages.send(Entries(time, True, b"") if good else Stored())

        await self.network.transport(NODES[number].peer_id).serve(DELEGATED_PROTOCOL, handle)

    def directory(self, numbers: Sequence[int]) -> DelegatedDirectory:
        addresses = [f"/ip4/8.8.{number}.1/tcp/1/p2p/{NODES[number].peer_id}" for number in numbers]
        transport = self.network.transport(READER.peer_id)
        return DelegatedDirectory(transport, READER, addresses, clock=Clock(NOW), rng=random.Random(1))


def test_the_first_answer_is_enough_and_the_others_count_later(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = VirtualLoop()

    async def work() -> None:
        peers = Peers()
        for number, after_s in enumerate((0.05, 1.0, 1e6)):
            await peers.add(number, after_s)
        directory = peers.directory(range(3))
        began = loop.time()
        await directory.join()
        await directory.nodes(MODEL)
        assert loop.time() - began < 0.2
        assert peers.asked == {0: 2, 1: 1, 2: 1, 3: 0}
        await asyncio.sleep(1.0)
        await directory.nodes(MODEL)
        assert peers.asked == {0: 3, 1: 2, 2: 1, 3: 0}
        await directory.close()

    run(monkeypatch, work(), loop)


async def failure(directory: DelegatedDirectory) -> SwarmError:
    with pytest.raises(SwarmError) as caught:
        await directory.join()
    await directory.close()
    return caught.value


async def test_where_nobody_answers_it_is_said_whether_anybody_was_there() -> None:
    peers = Peers()
    nobody = peers.directory([0, 1])
    error = await failure(nobody)
    assert isinstance(error, PeerUnreachableError)
    assert "no peer answers at /ip4/8.8." in error.message
    assert not nobody.reached
    peers.network.transport(NODES[2].peer_id)
    old = peers.directory([2])
    assert isinstance(await failure(old), NotSpokenError)
    assert old.reached
    await peers.add(3, 0, good=False)
    strange = peers.directory([3])
    assert "no peer answers" in (await failure(strange)).message
    assert strange.reached


async def test_a_wrong_clock_is_ours_only_if_all_say_so() -> None:
    peers = Peers()
    await peers.add(0, 0, NOW + 100)
    wrong = peers.directory([0])
    error = await failure(wrong)
    assert isinstance(error, NetworkError)
    assert "clock" in error.message
    await peers.add(1, 0.02)
    both = peers.directory([0, 1])
    await both.join()
    await both.close()


async def test_without_initial_peers_there_is_nobody_to_wait_for() -> None:
    directory = Peers().directory([])
    await directory.join()
    await directory.close()
