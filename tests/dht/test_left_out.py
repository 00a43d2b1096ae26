from __future__ import annotations

import logging

import pytest

from swarm_node.dht.left_out import FORGET_S, MAX_PEERS, LeftOut, LeftOutPeers
from tests.doubles.clock import Clock


def test_each_peer_is_told_once_and_forgotten_when_it_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(1000.0)
    peers = LeftOutPeers(clock)
    with caplog.at_level(logging.INFO, "swarm_node"):
        for _ in range(3):
            peers.note("b", "prefill_tps is 5e-324")
            peers.note("a", "span is odd")
    assert peers.all() == (LeftOut("a", "span is odd"), LeftOut("b", "prefill_tps is 5e-324"))
    assert peers.count == 6
    assert [record.getMessage() for record in caplog.records] == [
        "event=peer_left_out peer=b reason='prefill_tps is 5e-324'",
        "event=peer_left_out peer=a reason='span is odd'",
    ]
    clock.now += FORGET_S / 2
    peers.note("a", "span is odd")
    clock.now += FORGET_S / 2
    assert peers.all() == (LeftOut("a", "span is odd"),)


def test_strangers_cannot_fill_the_memory_or_the_log(caplog: pytest.LogCaptureFixture) -> None:
    peers = LeftOutPeers(Clock(1000.0))
    with caplog.at_level(logging.INFO, "swarm_node"):
        for number in range(3 * MAX_PEERS):
            peers.note(f"peer {number}", "odd")
    assert peers.count == 3 * MAX_PEERS
    assert len(peers.all()) == len(caplog.records) == MAX_PEERS
