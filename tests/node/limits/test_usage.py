from __future__ import annotations

import pytest

from swarm_node.node.limits.usage import ACTIVE_TOKENS_PER_S, Usage


def test_tokens_of_lately_count():
    usage, now = Usage(100.0), 100.0
    assert usage.tokens_per_s(now) == 0.0
    usage.add(1)
    assert usage.tokens_per_s(100.2) == 1.0  # no rate is made of a moment
    for _ in range(10):
        usage.add(50)
        now += 5.0
        usage.fold(now)
    assert usage.tokens_per_s(now) == pytest.approx(10.0, rel=0.1)
    for _ in range(6):
        now += 5.0
        usage.fold(now)
    assert usage.tokens_per_s(now) < ACTIVE_TOKENS_PER_S
    usage.add(100)
    assert usage.tokens_per_s(now + 1) > 10.0


def test_a_token_every_few_seconds_is_hardly_use():
    usage = Usage(0.0)
    for second in range(1, 100):
        usage.add(second % 4 == 0)
        if second % 5 == 0:
            usage.fold(float(second))
    assert usage.tokens_per_s(100.0) < ACTIVE_TOKENS_PER_S
