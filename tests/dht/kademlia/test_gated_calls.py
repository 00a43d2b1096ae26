"""Calls of other DHT nodes, without a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hivemind.p2p import P2PContext, PeerID
from hivemind.proto import dht_pb2

from swarm_node.dht.kademlia.gated_calls import (
    BYTES_PER_MS,
    CALL_MS,
    DISCONNECT_AFTER,
    ENTRY_MS,
    RATES,
    GatedP2P,
    cost_ms,
)
from swarm_node.dht.kademlia.store_calls import MAX_STORED_AT_ONCE
from swarm_node.swarm.fairness.gate import FairGate, GateLimits
from swarm_node.swarm.identity import Identity

SENDER = PeerID.from_base58(Identity(b"s" * 32).peer_id)
PING = dht_pb2.PingRequest()


class FakeP2P:
    """What a daemon does of it: keeps handlers, and ends connections."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[..., Any]] = {}
        self.disconnected: list[PeerID] = []
        self._client = self

    async def add_protobuf_handler(self, name: str, handler: Callable[..., Any], _: Any) -> None:
        self.handlers[name] = handler

    async def disconnect(self, peer: PeerID) -> None:
        self.disconnected.append(peer)

    async def call(self, request: Any) -> Any:
        return await self.handlers["call"](request, P2PContext("call", SENDER, SENDER))


async def gated(answer: Any, limits: GateLimits = RATES) -> FakeP2P:
    """A node whose handler gives ``answer``, behind the gate."""
    p2p = FakeP2P()

    async def group_of(peer_id: str) -> str:
        return "net 1"

    async def handler(request: Any, context: P2PContext) -> Any:
        return answer

    calls = GatedP2P(p2p, group_of, FairGate(limits))
    await calls.add_protobuf_handler("call", handler, dht_pb2.PingRequest)
    return p2p


async def test_calls_pass_and_large_ones_do_not() -> None:
    p2p = await gated(dht_pb2.PingResponse(dht_time=7))
    assert (await p2p.call(PING)).dht_time == 7
    with pytest.raises(PermissionError, match="bytes"):
        await p2p.call(dht_pb2.PingRequest(peer=dht_pb2.NodeInfo(node_id=bytes(100_000))))


async def test_who_floods_is_turned_away_and_disconnected_in_the_end() -> None:
    limits = GateLimits(1e-6, 0.1, 1e-6, 0.1, waiting=1, waiting_of_peer=1, patience_s=0.001)
    p2p = await gated(dht_pb2.PingResponse(), limits)
    await p2p.call(PING)
    await p2p.call(PING)
    for _ in range(DISCONNECT_AFTER):
        assert not p2p.disconnected
        with pytest.raises(PermissionError, match="too many"):
            await p2p.call(PING)
    assert p2p.disconnected == [SENDER]


async def test_large_answers_are_owed() -> None:
    answer = dht_pb2.FindResponse(results=[dht_pb2.FindResult(value=bytes(BYTES_PER_MS))])
    p2p = await gated(answer, GateLimits(1e-6, 1, 1e-6, 1, patience_s=0.001))
    await p2p.call(dht_pb2.FindRequest(keys=[bytes(20)]))
    with pytest.raises(PermissionError, match="too many"):
        await p2p.call(dht_pb2.FindRequest(keys=[bytes(20)]))


def test_costs_are_bounded_by_what_is_asked() -> None:
    assert cost_ms(PING) == CALL_MS
    assert cost_ms(dht_pb2.StoreRequest(keys=[bytes(20)] * 2)) == CALL_MS + 2 * ENTRY_MS
    assert cost_ms(dht_pb2.StoreRequest(keys=[b""] * 10_000)) == CALL_MS + MAX_STORED_AT_ONCE * ENTRY_MS
