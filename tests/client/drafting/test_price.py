from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.studies.speculation.simulated import SimulatedRoute
from swarm_node.client.drafting.price import NO_PRICE, price, price_on
from swarm_node.client.drafting.worth import Worth
from swarm_node.client.hops.trace import HopLoad, HopTimings
from swarm_node.swarm.types import Span

numbers = st.floats(allow_nan=True, allow_infinity=True)


def test_a_row_costs_each_session_its_time_at_every_hop() -> None:
    assert price([(0.0004, 4), (0.0008, 2)], 0.2) == pytest.approx((0.0016 + 0.0016) / 0.2)
    assert price([(0.0004, 0)], 0.2) == price([(0.0004, 1)], 0.2)  # the own session is there


def test_what_is_not_known_costs_nothing() -> None:
    assert price([], 0.2) == price([(0.0, 30)], 0.2) == price([(0.01, 3)], 0.0) == 0.0


@pytest.mark.parametrize("told", [(1e9, 1), (1e-3, 1e12), (nan, 1), (inf, 1), (1e-3, inf)])
def test_a_hop_that_lies_ends_guesses_at_most(told: tuple[float, float]) -> None:
    assert price([(0.0004, 4), told], 0.2) == NO_PRICE


@given(st.lists(st.tuples(numbers, numbers), max_size=8), numbers)
def test_it_is_a_part_of_a_token_whatever_is_told(hops: list[tuple[float, float]], trip_s: float) -> None:
    assert 0.0 <= price(hops, trip_s) <= NO_PRICE


def test_it_is_read_off_a_route() -> None:
    hops = [
        HopTimings("a", Span(0, 2), "none", load=HopLoad(0.0004, 4.0)),
        HopTimings("b", Span(2, 4), "none", load=HopLoad(0.0008, 2.0)),
    ]
    assert price_on(hops, 0.2) == price([(0.0004, 4), (0.0008, 2)], 0.2)


def test_a_load_goes_with_what_is_told() -> None:
    load = HopLoad()
    load.told(400)
    load.told(0)  # a hop that was restarted
    assert load.row_s == pytest.approx(0.0004)
    for _ in range(60):
        load.computed_with(8)
    assert load.sessions == pytest.approx(8, rel=0.02)
    load.computed_with(0)
    assert load.sessions >= 1


def test_what_is_less_likely_than_its_price_is_not_sent() -> None:
    worth = Worth(SimulatedRoute(row_s=0.0004).predicted())
    chances = [0.9, 0.6, 0.4, 0.3]
    assert worth.behind(chances) == 4
    worth.price = 0.5
    assert worth.behind(chances) == 2
    worth.price = NO_PRICE
    assert worth.behind(chances) == 0
