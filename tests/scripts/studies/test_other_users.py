"""scripts/study other_users: users in simulated time, with the nodes' own scheduler."""

from __future__ import annotations

import pytest

from scripts.studies.other_users import PLAIN, Costs, Speculates, simulate

DEAR = Costs(3.1, 2.0)


def test_alone_nobody_waits() -> None:
    costs = Costs(3.1, 0.4)
    speeds = simulate(costs, 1, 0, PLAIN, seconds=30)
    assert speeds.plain == pytest.approx(1000 / costs.trip, rel=0.02)
    speeds = simulate(costs, 0, 1, Speculates(31), seconds=60)
    assert speeds.others == pytest.approx(1000 / costs.trip / (1 - 0.74), rel=0.08)


@pytest.mark.parametrize(
    ("costs", "draft", "rows", "least"),
    [
        (Costs(3.1, 0.4), 15, 8, 0.95),
        (Costs(3.1, 0.4), 63, 8, 0.95),
        (Costs(10, 0.05), 15, 8, 0.95),
        (DEAR, 15, 3, 0.85),
    ],
)
def test_a_plain_user_beside_four_who_guess(costs: Costs, draft: int, rows: int, least: float) -> None:
    beside = [
        simulate(costs, 1, 4, each, seconds=40, seed=seed).plain
        for each in (PLAIN, Speculates(draft, step_rows=rows))
        for seed in range(2)
    ]
    assert sum(beside[2:]) / sum(beside[:2]) >= least


def test_on_a_busy_route_guesses_cost_plain_users_little_once_they_are_told() -> None:
    """And those who guess gain as well: nobody waits for what is void by then."""
    usual = simulate(DEAR, 16, 16, PLAIN, seconds=10)
    untold = simulate(DEAR, 16, 16, Speculates(15, step_rows=4, tells=False), seconds=10)
    told = simulate(DEAR, 16, 16, Speculates(15, step_rows=4), seconds=10)
    assert untold.plain < 0.6 * usual.plain
    assert told.plain > 0.8 * usual.plain
    assert told.others > 1.2 * untold.others


def test_a_price_keeps_guesses_off_a_route_that_is_not_told() -> None:
    usual = simulate(DEAR, 16, 16, PLAIN, seconds=10)
    speeds = [
        simulate(DEAR, 16, 16, Speculates(63, prices=prices, tells=False), seconds=10)
        for prices in (False, True)
    ]
    assert speeds[0].plain < 0.4 * usual.plain
    assert speeds[1].plain > 0.55 * usual.plain
