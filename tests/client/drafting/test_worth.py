"""Which guesses are sent: never at a loss that matters, and near the best that is possible."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.studies.speculation.simulated import (
    ALONE,
    DEAR_HOPS,
    FAST_HOPS,
    NEAR,
    SLOW_LINES,
    USUAL_HOPS,
    PositionGuesses,
    SimulatedRoute,
    Text,
    changing,
    copy,
    misleading,
    new_text,
    simulate,
)
from swarm_node.client.drafting.source import Source
from swarm_node.client.drafting.worth import FIRST_ROWS, MOST_AHEAD, RECENT_TRIPS, Choice, Worth


@pytest.fixture(autouse=True)
def drafting() -> None:
    """As it is."""


ROUTES = {
    "usual": USUAL_HOPS,
    "fast": FAST_HOPS,
    "slow lines": SLOW_LINES,
    "dear": DEAR_HOPS,
    "near": NEAR,
    "alone": ALONE,
}
HARMLESS = 0.97
"""Times plain decoding that anything of 64 tokens reaches."""


def _known(text: Text, right: float, told: float, seconds: float = 0.0, seed: int = 1) -> Source:
    return PositionGuesses(text[1], right, told, seconds=seconds, seed=seed)


@cache
def _usual_times() -> float:
    """Of a source that is right three times of four, and takes no time."""
    text = new_text(300)
    return simulate(*text, USUAL_HOPS, _known(text, 0.74, 0.74)).times


# What it brings


def test_a_copy() -> None:
    text = copy(200)
    assert simulate(*text, USUAL_HOPS).times > 30
    assert simulate(*text, FAST_HOPS).times > 30
    assert simulate(*text, SLOW_LINES).times > 18
    assert simulate(*text, NEAR).times > 8
    assert simulate(*text, DEAR_HOPS).times > 7


def test_a_copy_with_replaced_words() -> None:
    for route in (USUAL_HOPS, FAST_HOPS):
        assert simulate(*copy(400, every=30), route).times > 18


def test_a_copy_whose_words_are_replaced_by_shorter_and_longer_ones() -> None:
    prompt, copied = copy(400)
    rng, answer = random.Random(2), list[int]()
    while copied:
        answer += copied[:30]
        answer += [60_000 + len(answer) + number for number in range(rng.randrange(1, 4))]
        copied = copied[30 + rng.randrange(3) :]
    assert simulate(prompt, answer, USUAL_HOPS).times > 8


def test_a_source_that_is_right_three_times_of_four() -> None:
    """Close to the law: each miss costs a trip."""
    for route in (USUAL_HOPS, FAST_HOPS, SLOW_LINES):
        ratios, shares = [], []
        for seed in range(4):
            text = new_text(300, seed)
            made = simulate(*text, route, _known(text, 0.74, 0.74, seed=seed))
            ratios.append(made.times)
            shares.append(made.times * (299 - made.speculated.accepted) / 299)
        assert sum(shares) / 4 > 0.93
        assert sum(shares) / 4 / (1 - 0.74) > 3.5


@pytest.mark.parametrize("told", [0.5, 0.7, 2.0])
def test_a_trip_that_takes_longer_or_shorter_than_was_told(told: float) -> None:
    """The first one is measured, before guesses hold any up."""
    route = replace(USUAL_HOPS, told_links=told)
    assert simulate(*copy(200), route).times > 30
    text = new_text(300)
    assert simulate(*text, route, _known(text, 0.74, 0.74)).times > 0.97 * _usual_times()


@pytest.mark.parametrize("told_links", [0.3, 1.0])
@pytest.mark.parametrize("told", [1.0, 2.6])
def test_hops_that_are_faster_than_they_say(told: float, told_links: float) -> None:
    """Nodes measure themselves where others compute, too: a row looked like a step, and few were tried."""
    hops = SimulatedRoute(step_s=0.003, row_s=0.002, told=2.6, told_steps=told, told_links=told_links)
    assert simulate(*copy(240), hops).times > 27


def test_a_source_that_takes_a_while_is_asked_meanwhile() -> None:
    text = new_text(300)
    assert simulate(*text, USUAL_HOPS, _known(text, 0.74, 0.74, 0.01)).times > 0.85 * _usual_times()
    assert simulate(*text, NEAR, _known(text, 0.74, 0.74, 0.1)).speculated.drafted < 30, "too late always"


# What it costs


TEXTS: dict[str, Callable[[int], tuple[Text, Source | None]]] = {
    "nothing": lambda seed: (new_text(64, seed), None),
    "always wrong, and sure": lambda seed: ((text := new_text(64, seed)), _known(text, 0, 0.95)),
    "the same, in 3 ms": lambda seed: ((text := new_text(64, seed)), _known(text, 0, 0.95, 0.003)),
    "sometimes right": lambda seed: ((text := new_text(64, seed)), _known(text, 0.1, 0.95)),
    "few words": lambda seed: (misleading(64, seed), None),
    "very few words": lambda seed: (misleading(64, seed, 3), None),
    "copies and other text": lambda seed: (changing(64, seed), None),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", TEXTS)
def test_nothing_costs_anything(name: str, route: str) -> None:
    for seed in range(2):
        text, source = TEXTS[name](seed)
        assert simulate(*text, ROUTES[route], source, seed=seed).times >= HARMLESS
        text, source = TEXTS[name](seed)
        made = simulate(*text, ROUTES[route], source, seed=seed, clock_noise=0.2)
        assert made.times >= HARMLESS


@pytest.mark.parametrize("predicted", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_wrong_predictions_cost_nothing(route: str, predicted: bool) -> None:
    """None at all, or rows that are told to be ten times as cheap as they are."""
    wrong = replace(ROUTES[route], told=0.1)
    for name in TEXTS:
        text, source = TEXTS[name](5)
        assert simulate(*text, wrong, source, predicted=predicted).times >= HARMLESS


@pytest.mark.parametrize("name", ["always wrong, and sure", "few words", "very few words"])
def test_a_trip_that_is_predicted_a_thousand_times_too_long_is_no_gain(name: str) -> None:
    """That it took no longer had been put to what may be lost: 0.91 of plain decoding was left."""
    wrong = replace(DEAR_HOPS, told_links=1000.0, told_steps=0.001)
    for seed in range(2):
        text, source = TEXTS[name](seed)
        assert simulate(*text, wrong, source, seed=seed).times >= HARMLESS


@pytest.mark.slow
@given(
    step_s=st.floats(0.0005, 0.03),
    row_s=st.floats(0.00002, 0.03),
    latency_s=st.floats(0.0001, 0.1),
    hops=st.integers(1, 5),
    told=st.floats(0.5, 3.0),
    name=st.sampled_from(sorted(TEXTS)),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_route(
    step_s: float, row_s: float, latency_s: float, hops: int, told: float, name: str, seed: int
) -> None:
    route = SimulatedRoute(hops, latency_s, step_s, row_s, head_s=0.002, told=told)
    text, source = TEXTS[name](seed)
    assert simulate(*text, route, source, seed=seed).times >= HARMLESS


@pytest.mark.parametrize("route", ["usual", "dear", "near"])
def test_where_steps_take_longer_at_random_it_stays_so(route: str) -> None:
    noisy = replace(ROUTES[route], jitter=0.2)
    for name in TEXTS:
        ratios = []
        for seed in range(4):
            text, source = TEXTS[name](seed)
            ratios.append(simulate(*text, noisy, source, seed=seed).times)
        assert sum(ratios) / 4 >= HARMLESS


# The decision itself


def _measured(trip_s: float = 0.2, row_s: float = 0.001) -> Worth:
    worth = Worth(SimulatedRoute(row_s=row_s).predicted())
    for _ in range(RECENT_TRIPS):
        worth.trip(trip_s, 1, loaded=False)
    return worth


def test_before_anything_is_known_nothing_is_sent() -> None:
    worth = Worth()
    assert (worth.trip_s, worth.room(0), worth.least) == (None, 0, 1.0)
    assert worth.choose([0.99] * 9) == Choice()


def test_a_guess_must_be_as_likely_as_its_row_is_dear() -> None:
    worth = _measured(row_s=0.001)
    least = worth.least
    assert 0.001 / 0.2 < least < 0.01
    assert worth.behind([0.9, least, least * 0.99, 1.0]) == 2
    worth.price = 0.5
    assert worth.behind([0.9, 0.5, 0.4]) == 2


def test_rows_ahead_grow_by_what_was_right_and_shrink_where_that_was_late() -> None:
    worth = _measured()
    first = worth.room(0)
    assert FIRST_ROWS[0] <= first <= FIRST_ROWS[1]
    worth.trip(0.2, 8, loaded=True)
    worth.accepted(7)
    assert worth.room(0) == first + 7
    assert worth.room(5) == first + 2
    worth.accepted(500)
    assert worth.room(0) == MOST_AHEAD
    worth.trip(0.3, 1, loaded=True)
    assert worth.room(0) == MOST_AHEAD // 2


def test_what_may_be_lost_is_bounded() -> None:
    worth = _measured()
    worth.trip(0.4, 1, loaded=True)
    assert worth.room(0) == 0
    for _ in range(10):
        worth.trip(0.2, 1, loaded=False)
    assert worth.room(0) == 0
    for _ in range(100):
        worth.trip(0.2, 1, loaded=False)
    assert worth.room(0) > 0


@pytest.mark.parametrize("first_loaded", [False, True])
def test_a_prediction_earns_nothing(first_loaded: bool) -> None:
    """The first trip may be one that wrong guesses may hold up, as that before it was disturbed."""
    worth = Worth(replace(USUAL_HOPS, told_links=100.0).predicted())
    assert worth.trip_s is not None
    assert worth.trip_s > 20
    worth.trip(0.2, 1, loaded=first_loaded)
    assert worth.trip_s == 0.2
    assert worth.room(0) > 0
    worth.trip(0.3, 1, loaded=True)
    assert worth.room(0) == 0


def test_what_hops_tell_counts() -> None:
    worth = _measured(row_s=0.0004)
    step_s = worth.rows.step_s
    worth.told([0.001, 0.003, 0.002], 0.0, 0.05)
    assert worth.rows.row_s == pytest.approx(0.003)
    assert worth.rows.all_rows_s == pytest.approx(0.006)
    assert worth.rows.step_s == step_s
    assert worth.least == 0.05
    worth.told([0.001, 0.0, 0.002], 0.0, 0.0)
    assert worth.rows.row_s == pytest.approx(0.003)  # one does not know: as it was
    assert worth.least < 0.05
    worth.told([0.001, 0.003, 0.002], 0.004, 0.0)
    assert worth.rows.row_s == pytest.approx(0.004)
    assert worth.rows.all_rows_s == pytest.approx(0.006 + 4 * 0.004)


def test_old_gains_are_not_gambled_away() -> None:
    worth = _measured()
    for _ in range(50):
        worth.step(0.01, 8)
    for _ in range(8):
        worth.trip(1.2, 1, loaded=True)
    assert worth.room(0) == 0


def test_a_hiccup_does_not_spoil_what_is_known() -> None:
    worth = _measured()
    for seconds in (3.0, 0.2, 4.0):
        worth.trip(seconds, 1, loaded=False)
    assert worth.trip_s == pytest.approx(0.2)


def test_steps_that_came_slowly_are_dear() -> None:
    worth = _measured()
    before = worth.least
    for _ in range(3):
        worth.gap(0.1, 8)
        worth.gap(0.1, 1)
    assert worth.rows.row_s == pytest.approx(0.1 / 8, rel=0.05)
    assert worth.least > 2 * before


def test_what_hops_tell_later_is_compared_with_the_same_gaps() -> None:
    """Predicted four times as dear as they are; then told as they are, and no dearer or cheaper."""
    worth = _measured(row_s=0.004)
    step_s = worth.rows.step_s
    for _ in range(3):
        worth.gap(step_s + 0.001, 1)
    assert worth.rows.row_s < 0.004
    worth.told([0.001] * 3, 0.0, 0.0)
    assert worth.rows.row_s == pytest.approx(0.001)
    assert worth.rows.step_s == pytest.approx(step_s)


def test_sure_guesses_go_with_the_certain_token_and_unsure_ones_behind_it() -> None:
    worth = _measured(row_s=0.0004)
    assert worth.choose([0.99] * 5).first >= 4
    unsure = worth.choose([0.3, 0.1, 0.05])
    assert unsure.first == 0
    assert unsure.more > 0


def test_plain_trips_are_measured_now_and_then() -> None:
    worth = _measured()
    sent = 0
    for _ in range(40):
        choice = worth.choose([0.3])
        sent += choice != Choice()
        worth.trip(0.2, 1, loaded=choice != Choice())
        worth.over(1)
    assert 30 < sent < 40


def test_likely_guesses_fill_steps_and_others_go_in_small_ones() -> None:
    worth = _measured(row_s=0.0004)
    assert worth.cut([0.999**number for number in range(20)]) == [8, 8, 4]
    assert worth.cut([0.7**number for number in range(1, 9)])[0] < 5
    assert sum(worth.cut([0.7**number for number in range(1, 9)])) == 8
    assert worth.cut([]) == []


@pytest.mark.parametrize("chance", [0.0, 1e-3])
def test_what_is_hardly_ever_right_is_cut_like_anything_else(chance: float) -> None:
    """The chance of a long chain is none at all: it is too small for a number."""
    assert Worth().cut([chance**number for number in range(1, 129)]) == [8] * 16
