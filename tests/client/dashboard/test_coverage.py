"""Which blocks how many nodes serve."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from swarm_node.client.dashboard.coverage import coverage, throughput
from swarm_node.swarm.types import NodeInfo, NodeState, Span
from tests.client.dashboard.simulated import SMOL, three_nodes

SPANS = st.lists(st.tuples(st.integers(0, 29), st.integers(1, 30)).filter(lambda ends: ends[0] < ends[1]))


def node_of(span: Span) -> NodeInfo:
    return replace(three_nodes()[0], span=span)


@given(SPANS)
def test_each_block_is_in_one_stretch_with_the_number_of_its_servers(ends: list[tuple[int, int]]) -> None:
    spans = [Span(start, end) for start, end in ends]
    stretches = coverage([node_of(span) for span in spans], 30)
    counts = [each.servers for each in stretches for _ in range(len(each.span))]
    assert counts == [sum(block in span for span in spans) for block in range(30)]
    assert all(one.servers != other.servers for one, other in pairwise(stretches))


def test_only_nodes_that_are_online_count() -> None:
    nodes = [node_of(Span(0, 30)), replace(node_of(Span(0, 30)), state=NodeState.DRAINING)]
    assert [(str(each.span), each.servers) for each in coverage(nodes, 30)] == [("0-29", 1)]
    assert [(str(each.span), each.servers) for each in coverage([], 30)] == [("0-29", 0)]


def test_throughput_is_of_the_whole_model() -> None:
    """30 tokens/s through each third of a model are 30 tokens/s, not 90."""
    nodes = [replace(node, tokens_per_s=30.0) for node in three_nodes(SMOL)]
    assert throughput(nodes, SMOL.n_blocks) == 30.0
