"""What a node that serves blocks with states announces of its memory, as sessions come and go."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from swarm_node.dht.records.bodies import decode, encode_node
from swarm_node.node.cli.metrics.families import families
from swarm_node.node.cli.serving.display import load_line
from swarm_node.node.config import NodeConfig
from swarm_node.node.engine.engine import Engine
from swarm_node.node.figures.work import WorkDone
from swarm_node.node.loaded_span import LoadedSpan
from swarm_node.node.node import NodeFigures
from swarm_node.shards.formats.blocks.state import RecurrenceConfig
from swarm_node.swarm.routing.best_route import NoRouteError, RouteRequest, find_route
from swarm_node.swarm.routing.edges import Edges, Link
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span
from tests.shards.models.block_cases import CONTEXT, HIDDEN, RMS, block, checkpoint_of
from tests.swarm.codecs.codec_cases import codec_of

KEEPS = block(
    attention=None, state=RecurrenceConfig(4, 2, 8, 8, 4, "delta", RMS, norm_groups=4, norm_shared=True)
)
PEER = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


async def loaded(*blocks: object, tokens: int) -> LoadedSpan:
    config = NodeConfig("hybrid", kv_cache_tokens=tokens, dtype="float32", quantize="none")
    return await LoadedSpan.load(config, checkpoint_of([*blocks]), Span(0, len(blocks)), threads=1)


def announced(span: LoadedSpan) -> NodeInfo:
    model = ModelRef("hybrid", "ab" * 32, len(span.span))
    info = span.announced(NodeInfo(PEER, (), model, span.span, NodeState.ONLINE))
    read = decode(PEER, encode_node(info))
    assert isinstance(read, NodeInfo)
    return read


def is_usable(info: NodeInfo) -> bool:
    request = RouteRequest(info.model.n_blocks, kv_tokens=1)
    try:
        find_route([info], Edges([info], {PEER: Link(0.001, 1e8)}), request)
    except NoRouteError:
        return False
    return True


async def test_sessions_take_states_until_clients_see_that_none_are_left() -> None:
    span = await loaded(KEEPS, block(), tokens=4 * CONTEXT)
    engine: Engine = span.server.engine
    codec = codec_of("none", HIDDEN)
    before = announced(span)
    assert (before.free_states, before.total_states) == (4, 4)
    assert before.free_kv_tokens == before.total_kv_tokens == 4 * CONTEXT
    sequences = []
    for left in (3, 2, 1, 0):
        assert is_usable(announced(span))
        sequences.append(engine.open_sequence("peer", span.span, 200, codec, codec))
        assert announced(span).free_states == left
    full = announced(span)
    assert full.free_kv_tokens == 0, "pages are left, and no session finds room"
    assert not is_usable(full)
    assert not is_usable(replace(full, free_kv_tokens=9)), "whatever it says of tokens"
    assert engine.open_sequence("peer", span.span, 200, codec, codec) is None
    for sequence in sequences:
        engine.close_sequence(sequence)
    assert announced(span) == replace(before, decode_ms_per_block=announced(span).decode_ms_per_block)
    await span.aclose()


@pytest.mark.parametrize(("blocks", "states"), [((block(),), 0), ((KEEPS,), 2)])
async def test_a_node_with_one_kind_of_block(blocks: tuple[object, ...], states: int) -> None:
    span = await loaded(*blocks, tokens=2 * CONTEXT)
    info = announced(span)
    assert (info.free_states, info.total_states) == (states, states)
    assert info.free_kv_tokens == 2 * CONTEXT
    assert info.context_ms_per_block == 0
    assert span.details()["state_sessions"] == states
    await span.aclose()


async def test_people_see_how_many_sessions_find_states() -> None:
    work = WorkDone()
    span = await loaded(KEEPS, block(), tokens=4 * CONTEXT)
    codec = codec_of("none", HIDDEN)
    sequence = span.server.engine.open_sequence("peer", span.span, 200, codec, codec)
    figures = NodeFigures(NodeState.ONLINE, None, span.span, True, 1.0, span.statistics(), work.totals())
    node = SimpleNamespace(figures=lambda: figures, config=NodeConfig("hybrid"), peer_id=PEER)
    assert " · KV 75 % free · states for 3 of 4 sessions free · " in load_line(node)
    exposed = families(node, SimpleNamespace(sent_bytes=0, fetched_bytes=0))
    found = {family.name: family for family in exposed}
    assert found["swarm_node_state_sessions"].samples[0].value == 4
    assert found["swarm_node_state_free_sessions"].samples[0].value == 3
    span.server.engine.close_sequence(sequence)
    await span.aclose()
