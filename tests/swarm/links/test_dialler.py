"""What a node does with addresses that strangers bring it."""

from __future__ import annotations

import asyncio

import pytest

from swarm_node.swarm.errors import PeerUnreachableError, StreamClosedError
from swarm_node.swarm.links.dialler import Dialler
from swarm_node.swarm.links.guarded_dials import HiddenDialError, is_hidden
from swarm_node.swarm.types import ModelRef

MODEL = ModelRef("tiny", "ab" * 32, 4)
PUBLIC, LAN, LOOP = "/ip4/8.8.8.8/tcp/1", "/ip4/192.168.1.1/tcp/80", "/ip4/127.0.0.1/tcp/22"


class FakeStream:
    peer_id = "them"
    remote_maddr = PUBLIC

    def __init__(self) -> None:
        self.over = asyncio.Event()

    async def read(self, max_bytes: int = 0) -> bytes:
        await self.over.wait()
        return b""

    def write(self, buffers) -> None: ...

    async def drain(self) -> None: ...

    def close(self) -> None:
        self.over.set()


class FakeTransport:
    peer_id = "us"

    def __init__(self, *own: str) -> None:
        self.own = own
        self.dialled: list[tuple[str, list[str]]] = []
        self.answer: Exception | None = None

    async def maddrs(self):
        return self.own

    async def open_stream(self, peer_id, protocol_id, maddrs=(), timeout=0.0, *, lazy=False):
        self.dialled.append((peer_id, list(maddrs)))
        if self.answer is not None:
            raise self.answer
        return FakeStream()


def dialler(*own: str) -> tuple[Dialler, FakeTransport]:
    transport = FakeTransport(*own)
    return Dialler(transport, MODEL, "test", clock=lambda: 0.0), transport


async def test_a_public_node_goes_to_public_addresses_only():
    links, transport = dialler(PUBLIC)
    link = await links.get("them", [LAN, LOOP, PUBLIC])
    assert transport.dialled == [("them", [PUBLIC])]
    assert await links.get("them", [PUBLIC]) is link
    assert len(transport.dialled) == 1
    await links.close()


async def test_a_dial_into_our_own_network_fails_in_a_way_of_its_own():
    links, transport = dialler(LAN)
    transport.answer = PeerUnreachableError("refused")
    with pytest.raises(HiddenDialError):
        await links.get("them", [LAN])
    with pytest.raises(PeerUnreachableError) as caught:
        await links.get("them", [LAN])  # not dialled again: nothing to hide
    assert not isinstance(caught.value, HiddenDialError)
    public, transport = dialler(PUBLIC)
    transport.answer = PeerUnreachableError("nobody knows it")
    with pytest.raises(PeerUnreachableError) as caught:
        await public.get("them", [LAN])  # nor does a public node go there
    assert not isinstance(caught.value, HiddenDialError)


async def test_who_is_connected_already_needs_no_address_that_counts():
    links, transport = dialler(PUBLIC)
    await links.get("them", [LAN])
    assert transport.dialled == [("them", [])]
    await links.close()


async def test_what_failed_is_not_dialled_again_at_once():
    links, transport = dialler(LAN)
    transport.answer = PeerUnreachableError("refused")
    for _ in range(5):
        with pytest.raises(PeerUnreachableError):
            await links.get("them", [PUBLIC])
    assert len(transport.dialled) == 1
    transport.answer = StreamClosedError("our own end")
    for _ in range(3):
        with pytest.raises(StreamClosedError):
            await links.get("others", [LAN])  # nobody's fault over there
    transport.answer = None
    await links.get("others", [LAN])
    await links.close()


def test_hidden_is_what_the_asker_cannot_see_himself():
    assert not is_hidden([PUBLIC])
    assert is_hidden([PUBLIC, LAN])
    assert is_hidden([LOOP])
    assert not is_hidden([])
