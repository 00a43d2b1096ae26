"""Silent peers hold up nobody who asks several."""

from __future__ import annotations

import asyncio

import pytest

from swarm_node.dht.delegated.side_by_side import HEDGE_S, REST_S, ask_side_by_side
from swarm_node.swarm.errors import NetworkError, PeerTimeoutError
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.protocol.messages import Ping, encode
from swarm_node.swarm.protocol.wire import encode_frame
from swarm_node.swarm.transport.interface import Stream
from swarm_node.swarm.transport.memory import MemoryNetwork
from tests.doubles.virtual_time import VirtualLoop, run


async def seconds_of(peers: str, loop: VirtualLoop, wanted: int = 3) -> tuple[float, dict[str, object], int]:
    """``peers``: a letter each: a(nswers), s(ilent), f(ails), l(ate, after 2 s). Seconds, what became of
    each, and how many were asked at a time at most."""
    names = [f"{letter}{number}" for number, letter in enumerate(peers)]
    now = most = 0

    async def ask(name: str) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            await asyncio.sleep({"a": 0.05, "s": 1e6, "f": 0.05, "l": 2.0}[name[0]])
        finally:
            now -= 1
        if name[0] == "f":
            raise NetworkError("no")

    began = loop.time()
    outcomes = await ask_side_by_side(lambda answered: names, ask, wanted)
    return loop.time() - began, {name: type(outcome) for name, outcome in outcomes.items()}, most


@pytest.mark.parametrize(
    ("peers", "most_s"),
    [
        ("aaa", 0.1),
        ("saaa", 0.2 + HEDGE_S),
        ("sssaaa", 0.2 + HEDGE_S),
        ("sssssssssaaa", 0.2 + 3 * HEDGE_S),
        ("saa", 0.2 + HEDGE_S + REST_S),  # nobody is left to ask
        ("fffffa", 0.2 + REST_S),
        ("lll", 2.1),
        ("ffffff", 0.2),
    ],
)
def test_seconds(monkeypatch: pytest.MonkeyPatch, peers: str, most_s: float) -> None:
    loop = VirtualLoop()
    seconds, outcomes, most = run(monkeypatch, seconds_of(peers, loop), loop)
    assert seconds <= most_s
    assert most <= 16
    assert {name[0]: kind for name, kind in outcomes.items()} == {
        letter: {"a": type(None), "l": type(None), "f": NetworkError, "s": PeerTimeoutError}[letter]
        for letter in set(peers)
    }


@pytest.mark.parametrize(("pause_s", "bytes_at_once", "comes"), [(1.0, 1, False), (0.4, 4096, True)])
def test_an_answer_comes_or_does_not(
    monkeypatch: pytest.MonkeyPatch, pause_s: float, bytes_at_once: int, comes: bool
) -> None:
    """One that is slow is waited for; a byte a second is silence."""
    loop = VirtualLoop()

    async def drip(stream: Stream) -> None:
        data = b"".join(encode_frame(encode(Ping(1, (bytes(16),) * 64))))
        for start in range(0, len(data), bytes_at_once):
            await asyncio.sleep(pause_s)
            stream.write([data[start : start + bytes_at_once]])

    async def work() -> None:
        network = MemoryNetwork()
        await network.transport("b").serve("/p", drip)
        connection = Connection(await network.transport("a").open_stream("b", "/p"))
        if comes:
            assert isinstance(await connection.receive_within(1.0), Ping)
            return
        with pytest.raises(PeerTimeoutError):
            await connection.receive_within(1.0)
        assert loop.time() < 1003

    run(monkeypatch, work(), loop)
