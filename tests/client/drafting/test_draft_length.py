"""How much of a draft is sent: never at a loss that matters, and near the best that is possible."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.client.drafting.draft_length import (
    FIRST_DRAFT,
    FIRST_STAKE,
    LOSS_PART,
    MAX_DRAFT,
    PROBE_PASSES,
    UNSURE_PASSES,
    PassTimes,
    Speculation,
)


@pytest.fixture(autouse=True)
def drafting() -> None:
    """As it is."""


SURE, HALF = (("lookup", 16), 0.9), (("lookup", 3), 0.5)
Cost = Callable[[int], float]  # seconds of a pass by its tokens

COSTS: dict[str, Cost] = {
    "far": lambda tokens: 0.060 + 0.002 * tokens,
    "far, slow hops": lambda tokens: 0.056 + 0.006 * tokens,
    "near": lambda tokens: 0.004 + 0.002 * tokens,
    "nothing shared": lambda tokens: 0.005 * tokens,
    "tokens for nothing": lambda tokens: 0.080,
}


def _measured(cost: Cost, passes: int = UNSURE_PASSES) -> Speculation:
    speculation = Speculation()
    for _ in range(passes):
        speculation.passed(1, 1, cost(1))
    return speculation


class Simulated:
    """An answer whose drafted tokens are right by chance; seconds with drafts and without. ``noise``: by what
    part a pass seems longer than it is, on average, as on a machine that others use too."""

    def __init__(self, cost: Cost, seed: int, *, noise: float = 0.0) -> None:
        self.cost = cost
        self.speculation = Speculation()
        self.random = random.Random(seed)
        self.noise = noise
        self.seconds = self.plain_s = 0.0
        self.made = self.drafted = 0
        self.lengths: list[int] = []

    def run(self, tokens: int, chance: float, *, prior: float = 0.5, draft_s: float = 0.0) -> Simulated:
        """So many tokens more."""
        until = self.made + tokens
        while self.made < until:
            offered = [(("lookup", 3), prior)] * min(MAX_DRAFT, until - self.made - 1)
            costs = [draft_s] * len(offered)
            length = self.speculation.plan(offered, costs).length
            right = 0
            while right < length and self.random.random() < chance:
                right += 1
            seconds = seen = self.cost(1 + length)
            if self.noise:
                seen *= 1 + self.random.expovariate(1 / self.noise)
            kinds = [kind for kind, _ in offered[:length]]
            self.speculation.judged(kinds, right)
            self.speculation.passed(1 + length, 1 + right, seen, draft_s * length)
            self.seconds += seconds + draft_s * length
            self.made += 1 + right
            self.drafted += length
            self.lengths.append(length)
            self.plain_s += self.cost(1) * (1 + right)
        return self

    @property
    def ratio(self) -> float:
        return self.plain_s / self.seconds


def _best(cost: Cost, chance: float) -> float:
    """The ratio of whoever knows chance and cost."""
    ratios = []
    for length in range(MAX_DRAFT + 1):
        tokens = sum(chance**number for number in range(length + 1))
        ratios.append(tokens * cost(1) / cost(1 + length))
    return max(ratios)


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("prior", [0.15, 0.9])
def test_drafts_that_are_always_wrong_cost_little(name: str, prior: float) -> None:
    for seed in range(5):
        assert Simulated(COSTS[name], seed).run(96, 0.0, prior=prior).ratio > 0.955


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize(("noise", "mean", "least"), [(0.2, 0.955, 0.9), (0.6, 0.94, 0.75)])
def test_on_a_busy_machine_it_stays_so(name: str, noise: float, mean: float, least: float) -> None:
    for chance, prior in ((0.0, 0.15), (0.0, 0.9), (0.05, 0.15)):
        ratios = [
            Simulated(COSTS[name], n, noise=noise).run(96, chance, prior=prior).ratio for n in range(12)
        ]
        assert sum(ratios) / 12 > mean
        assert min(ratios) > least


@given(
    base=st.floats(0.001, 0.2),
    slope=st.floats(0.0, 0.05),
    chances=st.lists(st.tuples(st.integers(1, 60), st.floats(0, 1)), min_size=1, max_size=6),
    prior=st.floats(0.01, 0.99),
    draft_s=st.floats(0.0, 0.02),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_what_may_be_lost_is_bounded_whatever_happens(
    base: float, slope: float, chances: Sequence[tuple[int, float]], prior: float, draft_s: float, seed: int
) -> None:
    simulated = Simulated(lambda tokens: base + slope * tokens, seed)
    for tokens, chance in chances:
        simulated.run(tokens, chance, prior=prior, draft_s=draft_s)
    plain_s = base + slope
    # Unknown costs can be met once for each size of pass before they are known.
    surprises = 5 * 2 * slope * MAX_DRAFT
    lost = simulated.seconds - simulated.plain_s
    assert lost <= LOSS_PART * simulated.plain_s + FIRST_STAKE * plain_s + surprises + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("chance", [0.3, 0.6, 0.8, 0.95])
def test_it_comes_near_the_best_length(name: str, chance: float) -> None:
    ratios = [Simulated(COSTS[name], seed).run(600, chance).ratio for seed in range(3)]
    assert sum(ratios) / 3 > 0.8 * max(1.0, _best(COSTS[name], chance))


def test_a_draft_that_agrees_four_times_of_five_pays() -> None:
    assert Simulated(COSTS["far"], 1, noise=0.2).run(200, 0.8).ratio > 2.5


def test_a_text_that_begins_to_repeat_is_noticed_and_its_end_too() -> None:
    simulated = Simulated(COSTS["far"], 3).run(60, 0.0)
    assert sum(simulated.lengths[-20:]) < 20
    simulated.run(150, 1.0)
    assert max(simulated.lengths[-5:]) >= 20
    simulated.run(60, 0.0)
    assert sum(simulated.lengths[-20:]) < 60


def test_before_anything_is_known_nothing_is_drafted() -> None:
    assert Speculation().plan([SURE] * 8).length == 0


def test_a_guess_of_the_costs_allows_only_what_promises_much() -> None:
    guessed = Speculation(0.06, 0.002)
    assert guessed.plan([SURE] * 8).length == FIRST_DRAFT
    assert guessed.plan([HALF]).length == 0
    assert _measured(COSTS["far"]).plan([HALF]).length == 1


def test_the_length_follows_chances_and_costs() -> None:
    lengths = {}
    for name, cost in COSTS.items():
        speculation = _measured(cost, PROBE_PASSES - 1)
        for tokens in (2, 4, 8, 16, 33) * 3:
            speculation.times.took(tokens, cost(tokens))
        lengths[name] = [speculation.plan([(("x", 0), chance)] * 32).length for chance in (0.2, 0.5, 0.9)]
    assert lengths["nothing shared"] == [0, 0, 0]
    assert lengths["near"][0] <= lengths["near"][1] < lengths["near"][2] < lengths["far"][2]
    assert lengths["far, slow hops"][1] < lengths["far"][1]
    assert all(one <= two <= three for one, two, three in lengths.values())


def test_a_dear_draft_model_is_asked_for_less() -> None:
    speculation = _measured(COSTS["far"], PROBE_PASSES - 1)
    speculation.times.took(5, COSTS["far"](5))
    free, cheap, dear = (
        speculation.plan([(("model", 0), 0.8)] * 32, [seconds] * 32).length for seconds in (0.0, 0.004, 0.06)
    )
    assert free > cheap > dear == 0


def test_a_hiccup_does_not_spoil_what_is_known() -> None:
    times = PassTimes()
    for seconds in (0.05, 0.05, 3.0, 0.05):
        times.took(1, seconds)
    for seconds in (0.06, 5.0, 0.06):
        times.took(5, seconds)
    assert times.plain_s == pytest.approx(0.05)
    assert times.expected(5) == pytest.approx(0.06)


def test_what_a_token_more_takes_is_told_best_by_passes_of_that_size() -> None:
    times = PassTimes(token_s=0.5)
    times.took(1, 1.0)
    assert times.expected(9) == pytest.approx(5.0)  # a guess
    for _ in range(8):
        times.took(3, 1.2)
    assert times.expected(9) == pytest.approx(1.8)
    for _ in range(4):
        times.took(17, 5.0)
    assert times.expected(3) == pytest.approx(1.2)
    assert times.expected(17) == pytest.approx(5.0)
    assert times.expected(31) == pytest.approx(1 + 30 * 0.25)


def test_what_did_not_pay_is_tried_again_now_and_then() -> None:
    speculation = _measured(COSTS["near"])
    poor = [(("x", 0), 0.01)]
    lengths = []
    for _ in range(4 * PROBE_PASSES):
        lengths.append(speculation.plan(poor).length)
        speculation.passed(1 + lengths[-1], 1, COSTS["near"](1 + lengths[-1]))
    assert 2 <= sum(lengths) <= 4


def test_gains_of_long_ago_are_not_gambled_away() -> None:
    simulated = Simulated(COSTS["far"], 5).run(400, 1.0)
    before = simulated.seconds - simulated.plain_s
    simulated.run(100, 0.0)
    lost = simulated.seconds - simulated.plain_s - before
    assert lost < 0.15 * 100 * COSTS["far"](1)
