"""Sessions that a node refuses before it takes anything."""

from __future__ import annotations

import pytest

from swarm_node.node.sessions.handshake import Terms
from swarm_node.node.sessions.open_checks import checked_open
from swarm_node.swarm.boundaries import Boundaries
from swarm_node.swarm.codecs.kinds import NONE
from swarm_node.swarm.errors import ErrorCode
from swarm_node.swarm.protocol.messages import Open, Refused
from swarm_node.swarm.types import ModelRef, Span

MODEL = ModelRef("cut", "ab" * 32, 6)
TERMS = Terms(MODEL, Span(1, 6), ("none",), Boundaries((64,) * 7, (0, 1, 2, 5, 6)), 1 << 20, 512, 32, "test")


@pytest.mark.parametrize(
    ("span", "nearest"),
    [
        (Span(1, 6), ""),
        (Span(2, 5), ""),
        (Span(2, 4), "2-4"),
        (Span(3, 6), "2-5"),
        (Span(3, 4), "2-4"),
    ],
    ids=str,
)
def test_blocks_that_cannot_be_cut_out(span: Span, nearest: str) -> None:
    request = Open(b"s" * 16, span, 10, "none", "none")
    refused = checked_open(request, None, terms=TERMS, draining=False, context_tokens=100)
    if not nearest:
        assert refused == (NONE, NONE)
        return
    assert isinstance(refused, Refused)
    assert refused.code is ErrorCode.SPAN_NOT_SERVED
    assert f"blocks {span} cannot be computed alone" in refused.message
    assert refused.hint == f"The nearest blocks that can: {nearest}."
