from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.client.sampling import Sampler, SamplingParams, candidates, penalize
from swarm_node.swarm.errors import RemoteProtocolError, UsageError

VOCAB = 3000


def _logits(seed: int, n: int = VOCAB) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 3


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, 2.0])
    assert Sampler(SamplingParams()).next(logits) == 1
    assert Sampler(SamplingParams()).next(logits.to(torch.bfloat16)) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(bad: float, temperature: float) -> None:
    logits = torch.tensor([0.0, bad, 1.0])
    with pytest.raises(RemoteProtocolError, match="not finite"):
        Sampler(SamplingParams(temperature=temperature)).next(logits)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.7, 40, 1.0),
        (1.3, 0, 0.9),
        (0.8, 50, 0.8),
        (2.5, 0, 0.999),
        (1.0, VOCAB + 5, 0.5),
        (1.0, 1, 0.1),
    ],
)
def test_filters_are_those_of_transformers(temperature: float, top_k: int, top_p: float, seed: int) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = _logits(seed)
    reference = TemperatureLogitsWarper(temperature)(None, logits[None])
    if top_k:
        reference = TopKLogitsWarper(top_k)(None, reference)
    if top_p < 1:
        reference = TopPLogitsWarper(top_p)(None, reference)
    expected = torch.softmax(reference[0], 0)
    ids, probabilities = candidates((logits - logits.max()) / temperature, top_k, top_p)
    assert ids.tolist() == expected.nonzero().squeeze(1).tolist()
    assert torch.allclose(probabilities, expected[ids], atol=1e-6)


def test_top_k_keeps_all_equals_at_its_edge() -> None:
    from transformers import TopKLogitsWarper

    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0])
    kept = TopKLogitsWarper(2)(None, logits[None])[0].isfinite().nonzero().squeeze(1)
    assert candidates(logits, 2, 1.0)[0].tolist() == kept.tolist() == [1, 2, 3]


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, seen = _logits(1), [5, 17, 17, 2999, 0]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), logits[None].clone())[0]
    assert torch.equal(penalize(logits, torch.tensor(sorted(set(seen))), penalty), expected)


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    logits = torch.tensor([4.0, 3.9, 3.8, 0.0])
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), prompt=[0])
    assert [sampler.next(logits) for _ in range(4)] == [1, 2, 0, 0]


def test_a_seed_repeats_and_another_does_not() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        return [sampler.next(_logits(step)) for step in range(30)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


def test_sampling_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    sampler = Sampler(SamplingParams(temperature=1.0, seed=3))
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[sampler.next(probabilities.log())] += 1
    assert torch.allclose(counts / 4000, probabilities, atol=0.03)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    st.floats(1e-30, 1e6),
    st.integers(0, 50),
    st.floats(1e-6, 1.0),
    st.integers(0, 2**64),
)
def test_always_some_token_of_the_vocabulary(
    logits: list[float], temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    token = Sampler(params).next(torch.tensor(logits))
    assert 0 <= token < len(logits)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("seed", "x"),
    ],
)
def test_impossible_parameters_are_named(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        SamplingParams(**{name: value})  # type: ignore[arg-type]
