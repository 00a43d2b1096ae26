"""What a serving node tells a person."""

from __future__ import annotations

import pytest

from swarm_node.node.cli_serve import suggest_blocks
from swarm_node.node.config import NodeEvent


@pytest.mark.parametrize(
    ("served", "suggested"), [("0-14", "15-29"), ("10-19", "20-29"), ("20-29", "0-19"), ("0-29", "0-29")]
)
def test_the_next_peer_is_told_blocks_that_help(served: str, suggested: str) -> None:
    event = NodeEvent("online", blocks=served, details={"n_blocks": 30})
    assert suggest_blocks(event) == suggested
