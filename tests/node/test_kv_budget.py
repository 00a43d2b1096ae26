from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node.kv_budget import (
    MAX_CONTEXTS,
    MEMORY_CEILING,
    MEMORY_SHARE,
    KvBudget,
    default_kv_tokens,
)
from swarm_node.swarm.errors import LocalProtocolError, UsageError

GIB = 1024**3


@given(
    total=st.integers(1, 5000),
    n_blocks=st.integers(1, 40),
    moves=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6000), st.integers(1, 40)), max_size=60),
)
def test_never_gives_more_than_it_has_and_gets_everything_back(total, n_blocks, moves):
    budget = KvBudget(total, n_blocks)
    held: dict[int, int] = {}
    for holder, tokens, blocks in moves:
        if holder in held:
            budget.release(holder)
            del held[holder]
        elif blocks > n_blocks:
            with pytest.raises(LocalProtocolError):
                budget.reserve(holder, tokens, blocks)
        else:
            fits = sum(held.values()) + tokens * blocks <= total * n_blocks
            assert budget.reserve(holder, tokens, blocks) is fits
            if fits:
                held[holder] = tokens * blocks
        assert budget.free_tokens == (total * n_blocks - sum(held.values())) // n_blocks
        assert budget.statistics().reservations == len(held)
    for holder in held:
        budget.release(holder)
    assert budget.free_tokens == total


def test_a_sub_span_costs_its_part_only():
    budget = KvBudget(100, 10)
    assert budget.reserve("half", 100, 5)
    assert budget.free_tokens == 50
    assert budget.reserve("other half", 100, 5)
    assert not budget.reserve("one more", 1, 1)


def test_could_ever_fit_agrees_with_an_empty_cache():
    budget = KvBudget(10, 3)
    for tokens in range(1, 40):
        for blocks in range(1, 4):
            assert budget.could_ever_fit(tokens, blocks) is KvBudget(10, 3).reserve("x", tokens, blocks)
    assert not budget.could_ever_fit(1, 4)


def test_a_double_free_or_second_reservation_is_a_bug():
    budget = KvBudget(10, 1)
    budget.reserve("a", 1, 1)
    with pytest.raises(LocalProtocolError):
        budget.reserve("a", 1, 1)
    budget.release("a")
    with pytest.raises(LocalProtocolError):
        budget.release("a")


def test_an_impossible_budget_is_refused():
    with pytest.raises(UsageError):
        KvBudget(0, 1)


@given(available=st.integers(0, 2**45), per_token=st.integers(1, 10**7), context=st.integers(1, 2_000_000))
def test_default_stays_in_its_bounds(available, per_token, context):
    tokens = default_kv_tokens(available, per_token, context)
    assert 1 <= tokens <= MAX_CONTEXTS * context
    assert tokens * per_token <= max(available * MEMORY_CEILING, per_token)
    if tokens > context:
        assert tokens * per_token <= available * MEMORY_SHARE


def test_default_for_machines_one_knows():
    per_token = 2 * 30 * 3 * 64 * 4  # SmolLM2-135M, float32: 46 KB
    assert default_kv_tokens(20 * GIB, per_token, 8192) == 20 * GIB // 4 // per_token
    assert default_kv_tokens(GIB // 2, per_token, 8192) == 8192  # one context, more than the share
    assert default_kv_tokens(64 * 1024**2, per_token, 8192) == int(0.8 * 64 * 1024**2) // per_token
