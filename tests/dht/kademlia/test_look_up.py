from __future__ import annotations

import pytest

from swarm_node.dht.kademlia.contacts import Contact
from swarm_node.dht.kademlia.look_up import Told, look_up
from swarm_node.dht.kademlia.paths import Paths
from swarm_node.dht.kademlia.peer_notes import PeerNotes


async def test_a_fault_of_ours_over_one_answer_costs_that_answer_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    peers = [Contact(number, f"peer {number}") for number in range(6)]
    paths = Paths(0, peers, own_id="us", width=6, enough=3, patience_s=5.0)

    async def ask(contact: Contact) -> Told | None:
        if contact.peer_id == "peer 2":
            raise ZeroDivisionError
        return Told(())

    await look_up(paths, ask, PeerNotes(lambda: 0.0))
    assert {contact.peer_id for contact in paths.nearest()} == {peer.peer_id for peer in peers} - {"peer 2"}
    assert "ZeroDivisionError" in caplog.text
