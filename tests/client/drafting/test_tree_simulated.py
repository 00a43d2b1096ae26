"""What second guesses bring over a simulated route, by the code that decides in a client; and that they do no
harm where they bring nothing."""

from __future__ import annotations

from functools import cache
from statistics import mean

import pytest

from scripts.studies.speculation.simulated import (
    DEAR_HOPS,
    FAST_HOPS,
    SLOW_LINES,
    USUAL_HOPS,
    PositionGuesses,
    SimulatedRoute,
    new_text,
    simulate,
)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def drafting() -> None:
    """As it is."""


TOKENS = 250
SEEDS = 4
FEWER_SEEDS = 2
"""Where the two that are compared are near each other."""


@cache
def _times(
    route: SimulatedRoute,
    right: float,
    second: float,
    *,
    told: float | None = None,
    seconds: float = 0.0,
    seeds: int = FEWER_SEEDS,
) -> float:
    """Times plain decoding, with a source whose other guess is right with the chance ``second``, and ``told``
    to be; 0: there is no other."""
    results = []
    for seed in range(seeds):
        prompt, answer = new_text(TOKENS, seed + 10)
        source = PositionGuesses(
            answer, right, right, second=second, told_second=told, seconds=seconds, seed=seed
        )
        results.append(simulate(prompt, answer, route, source, seed=seed).times)
    return mean(results)


@pytest.mark.parametrize(("route", "least"), [(FAST_HOPS, 4.3), (USUAL_HOPS, 3.8)])
def test_second_guesses_beat_a_chain(route: SimulatedRoute, least: float) -> None:
    """The bound of a chain that is right 74 % of the time is 3.85."""
    times = _times(route, 0.74, 0.12, seeds=SEEDS)
    assert times >= least
    assert times > 1.12 * _times(route, 0.74, 0.0, seeds=SEEDS)


def test_of_a_source_that_takes_its_time() -> None:
    assert _times(USUAL_HOPS, 0.74, 0.12, seconds=0.02) > 1.03 * _times(USUAL_HOPS, 0.74, 0.0, seconds=0.02)


@pytest.mark.parametrize("route", [USUAL_HOPS, SLOW_LINES, DEAR_HOPS])
@pytest.mark.parametrize(("right", "second"), [(0.74, 0.12), (0.95, 0.03)])
def test_where_a_chain_is_as_good_a_chain_is_sent(route: SimulatedRoute, right: float, second: float) -> None:
    assert _times(route, right, second) > 0.95 * _times(route, right, 0.0)


@pytest.mark.parametrize("route", [USUAL_HOPS, SLOW_LINES, DEAR_HOPS])
def test_second_guesses_that_are_never_right_are_given_up(route: SimulatedRoute) -> None:
    assert _times(route, 0.74, 0.0, told=0.25) > 0.92 * _times(route, 0.74, 0.0)
