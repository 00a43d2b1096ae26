"""When a slow hop is worth replacing: savings against replay, with margins."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.routing.prediction import EdgePrediction, HopPrediction, Prediction
from swarm_node.swarm.routing.slow_hop import (
    ENOUGH_STEPS,
    GROSS_STEPS,
    ChainSpent,
    HopSpent,
    Replacement,
    chain_to_take_apart,
    hop_to_replace,
)
from swarm_node.swarm.types import Span

WIRE_S = 0.01


def predicted(*compute_s: float) -> Prediction:
    hops = tuple(HopPrediction(f"p{i}", Span(i, i + 1), 0.0, s, 0.0) for i, s in enumerate(compute_s))
    edges = tuple(EdgePrediction("", "", WIRE_S, True, True) for _ in range(len(hops) + 1))
    return Prediction(hops, edges, 0.0)


def spent(*node_s: float, steps: int = ENOUGH_STEPS) -> list[HopSpent]:
    return [HopSpent(steps, 0.0, s) for s in node_s]


GOOD = Replacement(token_s=0.030, replay_s=1.0)


def test_a_slow_hop_is_replaced_when_enough_tokens_are_to_come() -> None:
    # 0.110 + ways 0.020 against 0.030: saves 0.1 s a token, costs 0.5 + 1.5 * 1 s
    assert hop_to_replace(predicted(0.01, 0.01), spent(0.11, 0.01), [GOOD, GOOD], 21) == 0
    assert hop_to_replace(predicted(0.01, 0.01), spent(0.11, 0.01), [GOOD, GOOD], 19) is None
    assert hop_to_replace(predicted(0.01, 0.01), spent(0.01, 0.11), [GOOD, GOOD], 21) == 1


def test_as_fast_as_it_should_be_stays() -> None:
    assert hop_to_replace(predicted(0.01, 0.01), spent(0.011, 0.012), [GOOD, GOOD], 10**6) is None


def test_a_pause_is_no_slowness() -> None:
    few = [*spent(0.5), *spent(0.01, steps=ENOUGH_STEPS - 1)]
    assert hop_to_replace(predicted(0.01, 0.01), few, [GOOD, GOOD], 1000) is None


def test_where_nobody_else_is_nothing_happens() -> None:
    assert hop_to_replace(predicted(0.01), spent(5.0), [None], 1000) is None
    assert hop_to_replace(predicted(), [], [], 1000) is None


def test_when_all_are_slower_than_announced_so_will_the_next_be() -> None:
    assert hop_to_replace(predicted(0.01, 0.01), spent(0.04, 0.04), [GOOD, GOOD], 10**4) is None
    assert hop_to_replace(predicted(0.01, 0.01), spent(0.04, 0.01), [GOOD, GOOD], 10**4) == 0


def test_the_one_that_saves_most() -> None:
    far = Replacement(token_s=0.05, replay_s=1.0)
    assert hop_to_replace(predicted(0.01, 0.01, 0.01), spent(0.2, 0.2, 0.01), [far, GOOD, None], 100) == 1


def test_steps_that_check_drafts_are_no_slowness() -> None:
    """Eight tokens a step, which cost as a prompt's do."""
    hops = tuple(HopPrediction(f"p{i}", Span(i, i + 1), 0.0, 0.01, 0.5) for i in range(2))
    edges = tuple(EdgePrediction("", "", WIRE_S, True, True) for _ in range(3))
    route = Prediction(hops, edges, 0.0, prompt_tokens=100)
    cost_s = 0.01 + 7 * 0.005

    def seen(*times: float) -> list[HopSpent]:
        return [HopSpent(ENOUGH_STEPS, 0.0, cost_s * n, tokens=8.0) for n in times]

    assert hop_to_replace(route, seen(1, 1), [GOOD, GOOD], 10**4) is None
    assert hop_to_replace(route, seen(11, 1), [GOOD, GOOD], 8 * 21) == 0
    assert hop_to_replace(route, seen(11, 1), [GOOD, GOOD], 8 * 19) is None


def test_time_that_a_hop_does_not_own_up_to_is_its_own() -> None:
    says = [HopSpent(GROSS_STEPS, 0.0, 5e-6, unexplained_s=0.3), *spent(0.01)]
    assert hop_to_replace(predicted(1e-6, 0.01), says, [GOOD, GOOD], 100) == 0
    assert hop_to_replace(predicted(1e-6, 0.01), says, [None, GOOD], 100) is None, "there is no better one"
    # a few steps are enough only where it is far off, and was not told
    little = [HopSpent(GROSS_STEPS, 0.0, 5e-6, unexplained_s=0.04), *spent(0.01)]
    assert hop_to_replace(predicted(1e-6, 0.01), little, [GOOD, GOOD], 1000) is None
    honest = [HopSpent(GROSS_STEPS, 0.0, 0.3), *spent(0.01)]
    assert hop_to_replace(predicted(0.01, 0.01), honest, [GOOD, GOOD], 100) is None


def test_what_this_client_measured_needs_no_discount() -> None:
    slow = predicted(0.01, 0.01), spent(0.1, 0.04)
    assert hop_to_replace(*slow, [GOOD, None], 10**4) is None
    assert hop_to_replace(*slow, [Replacement(0.03, 1.0, measured=True), None], 10**4) == 0


def test_a_chain_is_taken_apart_where_a_hop_of_it_may_be_to_blame() -> None:
    fine = spent(0.01, 0.01, 0.01)
    route = predicted(0.01, 0.01, 0.01)
    late, well = ChainSpent(0, 1, 40, 0.3, unexplained_s=0.25), ChainSpent(2, 2, 40, 0.02)
    others = [GOOD, None, GOOD]
    assert chain_to_take_apart(route, fine, [well, late], others, 100) == 1
    assert chain_to_take_apart(route, fine, [well], others, 100) is None
    assert chain_to_take_apart(route, fine, [late], [None, None, GOOD], 100) is None, (
        "nobody could replace them"
    )
    assert chain_to_take_apart(route, fine, [late], others, 5) is None, "it does not pay"


@given(
    st.lists(st.floats(0.001, 1), min_size=1, max_size=4), st.data(), st.floats(0, 10), st.integers(0, 2000)
)
def test_a_replacement_as_announced_never_leads_straight_back(
    computes: list[float], data: st.DataObject, replay_s: float, tokens: int
) -> None:
    """Whatever is replaced is by a third slower than what comes: the same figures do not lead back."""
    count = len(computes)
    seen = spent(*data.draw(st.lists(st.floats(0.001, 1), min_size=count, max_size=count)))
    others = [Replacement(s + 2 * WIRE_S, replay_s) for s in computes]
    chosen = hop_to_replace(predicted(*computes), seen, others, tokens)
    if chosen is None:
        return
    after = list(seen)
    after[chosen] = HopSpent(ENOUGH_STEPS, 0.0, computes[chosen])
    back: list[Replacement | None] = [None] * count
    back[chosen] = Replacement(seen[chosen].node_s + 2 * WIRE_S, replay_s)
    assert hop_to_replace(predicted(*computes), after, back, tokens) is None
