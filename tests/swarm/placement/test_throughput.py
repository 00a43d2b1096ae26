"""The throughput of a set of spans, against linear programming."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from swarm_node.swarm.placement.throughput import PRECISION, throughput


def by_linear_programme(rates: dict[tuple[int, int], float], n_blocks: int) -> float:
    """Most T for which node work x[node, block] adds up to T at every block and to no more than its rate."""
    places = [(node, block) for node, (start, end) in enumerate(rates) for block in range(start, end)]
    at_block = np.zeros((n_blocks, len(places) + 1))
    of_node = np.zeros((len(rates), len(places) + 1))
    for number, (node, block) in enumerate(places):
        at_block[block, number] = of_node[node, number] = 1.0
    at_block[:, -1] = -1.0
    wanted = np.zeros(len(places) + 1)
    wanted[-1] = -1.0
    found = linprog(wanted, of_node, list(rates.values()), at_block, np.zeros(n_blocks))
    return float(-found.fun)


@st.composite
def swarms(draw: st.DrawFn) -> tuple[dict[tuple[int, int], float], int]:
    n_blocks = draw(st.integers(1, 8))
    rates = {}
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, n_blocks - 1))
        rates[start, draw(st.integers(start + 1, n_blocks))] = draw(st.sampled_from([0.5, 1.0, 3.0, 40.0]))
    return rates, n_blocks


@settings(max_examples=60)
@given(swarms())
def test_it_is_what_linear_programming_finds(swarm: tuple[dict[tuple[int, int], float], int]) -> None:
    rates, n_blocks = swarm
    exact = by_linear_programme(rates, n_blocks)
    found = throughput(rates, n_blocks)
    assert exact * (1 - PRECISION) - 1e-9 <= found <= exact * (1 + 1e-6) + 1e-9
    assert throughput(rates, n_blocks, at_least=exact * 1.01 + 1e-6) == 0.0
    assert throughput(rates, n_blocks, at_least=found * 0.9) >= found * (1 - PRECISION)


def test_a_scarce_block_between_plenty_decides() -> None:
    rates = {(0, 3): 3.0, (1, 2): 1000.0}
    assert abs(throughput(rates, 3) - 1.5) < 2e-3  # the first node does blocks 0 and 2 alone


def test_nothing_where_a_block_is_missing() -> None:
    assert throughput({(0, 2): 5.0, (3, 4): 5.0}, 4) == 0.0
    assert throughput({}, 1) == 0.0
