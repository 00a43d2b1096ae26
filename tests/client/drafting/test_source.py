"""What is read off the rows of a model that guesses."""

from __future__ import annotations

import numpy as np
import pytest

from swarm_node.client.drafting.source import two_likeliest


@pytest.mark.parametrize("seed", range(20))
def test_the_two_likeliest_have_the_probabilities_of_softmax(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(int(rng.integers(2, 50))) * 10.0 ** rng.integers(-2, 3)).astype(np.float32)
    likely = two_likeliest(logits)
    whole = np.exp(logits.astype(np.float64) - logits.max())
    whole /= whole.sum()
    order = np.argsort(-whole, kind="stable")[:2]
    assert likely is not None
    assert [token for token, _ in likely] == order.tolist()
    assert [chance for _, chance in likely] == pytest.approx(whole[order].tolist(), rel=1e-4, abs=1e-30)


def test_equals_are_told_apart_and_nonsense_is_no_guess() -> None:
    assert two_likeliest(np.zeros(4, np.float32)) == ((0, 0.25), (1, 0.25))
    assert two_likeliest(np.array([1.0, np.nan, 2.0], np.float32)) is None
    assert two_likeliest(np.array([1.0, np.inf], np.float32)) is None
