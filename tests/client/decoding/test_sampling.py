from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swarm_node.client.decoding import sampling
from swarm_node.client.decoding.sampling import (
    ChosenToken,
    Sampler,
    SamplingParams,
    candidates,
    drawn,
    penalize,
)
from swarm_node.swarm.errors import RemoteProtocolError, UsageError

VOCAB = 3000


def _logits(seed: int, n: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n, np.float32) * 3


def _array(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def _token(params: SamplingParams, logits: np.ndarray) -> int:
    return Sampler(params).choose(logits).token


def test_greedy_takes_the_first_of_equals() -> None:
    logits = _array(0.0, 2.0, 1.0, 2.0)
    assert Sampler(SamplingParams()).choose(logits) == ChosenToken(1, None, ())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "params",
    [{}, {"temperature": 1.0}, {"logit_bias": {1: -100}}, {"presence_penalty": 1.0}, {"logprobs": 2}],
)
def test_logits_that_are_not_finite_are_refused(bad: float, params: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="not finite"):
        _token(SamplingParams(**params), _array(0.0, bad, 1.0))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.7, 40, 1.0, 0.0),
        (1.3, 0, 0.9, 0.0),
        (0.8, 50, 0.8, 0.0),
        (2.5, 0, 0.999, 0.0),
        (1.0, VOCAB + 5, 0.5, 0.0),
        (1.0, 1, 0.1, 0.0),
        (1.0, 0, 1.0, 0.05),
        (1.5, 100, 0.95, 0.2),
        (0.9, 0, 0.6, 1.0),
    ],
)
def test_filters_are_those_of_transformers(
    temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.from_numpy(_logits(seed))
    warpers: list[Callable[..., Tensor]] = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    reference = logits[None]
    for warper in warpers:
        reference = warper(None, reference)
    expected = torch.softmax(reference[0], 0)
    relative = ((logits - logits.max()) / temperature).numpy()
    ids, probabilities = candidates(relative, top_k, top_p, min_p)
    assert ids.tolist() == expected.nonzero().squeeze(1).tolist()
    assert np.allclose(probabilities, expected[ids].numpy(), atol=1e-6)


def test_the_smallest_top_p_leaves_the_most_likely_token() -> None:
    scores = np.array([0.0, 2.0, 1.0], np.float32)
    ids, probabilities = candidates(scores, 0, 5e-324)
    assert (ids.tolist(), probabilities.tolist()) == ([1], [1.0])


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.2, [1]), (0.5, [1, 2]), (0.7, [1, 2, 4]), (0.9999, [0, 1, 2, 4])]
)
def test_of_equals_at_the_edge_of_top_p_the_first_survive(top_p: float, kept: list[int]) -> None:
    scores = _array(-8.0, 0.0, 0.0, -90.0, 0.0)
    assert candidates(scores, 0, top_p)[0].tolist() == kept
    many = np.zeros(5000, np.float32)
    assert candidates(many, 0, top_p)[0].tolist() == list(range(math.ceil(5000 * top_p)))


def test_top_k_keeps_all_equals_at_its_edge() -> None:
    from transformers import TopKLogitsWarper

    logits = _array(1.0, 3.0, 2.0, 2.0, 0.0)
    warped = TopKLogitsWarper(2)(None, torch.from_numpy(logits)[None])[0]
    kept = warped.isfinite().nonzero().squeeze(1)
    assert candidates(logits, 2, 1.0)[0].tolist() == kept.tolist() == [1, 2, 3]


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    scores, seen = _logits(1), [5, 17, 17, 2999, 0]
    logits = torch.from_numpy(scores.copy())[None]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), logits)[0]
    penalize(scores, np.array(sorted(set(seen))), penalty)
    assert np.array_equal(scores, expected.numpy())


def test_a_penalty_without_measure_stays_finite() -> None:
    logits = _array(1.0, 2.0, -3.0)
    params = SamplingParams(repetition_penalty=1e-45, temperature=1.0, seed=1)
    assert Sampler(params, prompt=[0, 2]).choose(logits).token == 0


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    logits = _array(4.0, 3.9, 3.8, 0.0)
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), prompt=[0])
    assert [sampler.choose(logits).token for _ in range(4)] == [1, 2, 0, 0]


def _slowly_adjusted(
    logits: np.ndarray, prompt: list[int], answer: list[int], params: SamplingParams
) -> np.ndarray:
    """Bias, then transformers' repetition penalty, then OpenAI's formula for the others, token by token."""
    scores = [float(score) for score in logits]
    for token in range(len(scores)):
        scores[token] += params.logit_bias.get(token, 0.0)
        if token in prompt or token in answer:
            score, penalty = scores[token], params.repetition_penalty
            scores[token] = score * penalty if score < 0 else score / penalty
        count = answer.count(token)
        scores[token] -= params.frequency_penalty * count + params.presence_penalty * (count > 0)
    return _array(*scores)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 11), max_size=5),
    st.floats(0.5, 2.0),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.dictionaries(st.integers(0, 11), st.floats(-100, 100), max_size=4),
    st.sampled_from([0.0, 0.8]),
    st.integers(0, 1000),
)
def test_bias_and_penalties_are_those_of_plain_code(
    prompt: list[int],
    repetition: float,
    frequency: float,
    presence: float,
    bias: dict[int, float],
    temperature: float,
    seed: int,
) -> None:
    params = SamplingParams(
        temperature=temperature,
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        logit_bias=bias,
        seed=seed,
    )
    sampler, plain = Sampler(params, prompt), SamplingParams(temperature=temperature, seed=seed)
    reference = Sampler(plain)
    answer: list[int] = []
    for step in range(12):
        logits = _logits(seed * 100 + step, 12)
        adjusted = _slowly_adjusted(logits, prompt, answer, params)
        second, best = np.sort(adjusted)[-2:]
        token = sampler.choose(logits).token
        expected = reference.choose(adjusted).token
        answer.append(token)
        if temperature or best - second > 1e-4:  # rounding may turn equals round
            assert token == expected


def test_penalties_leave_the_prompt_alone_and_bias_forbids_and_forces() -> None:
    logits = _array(4.0, 3.9, 3.0)
    params = SamplingParams(frequency_penalty=0.06, presence_penalty=0.0)
    sampler = Sampler(params, prompt=[0, 0, 0])
    assert [sampler.choose(logits).token for _ in range(4)] == [0, 0, 1, 0]
    assert _token(SamplingParams(logit_bias={0: -100}), logits) == 1
    assert _token(SamplingParams(logit_bias={2: 100}, temperature=1.0), logits) == 2


@pytest.mark.parametrize("params", [{}, {"temperature": 0.5, "top_k": 3, "logit_bias": {7: -100}, "seed": 1}])
def test_logprobs_are_of_the_models_own_distribution(params: dict[str, Any]) -> None:
    logits = _logits(9)
    choice = Sampler(SamplingParams(logprobs=5, **params)).choose(logits)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), 0)
    assert choice.logprob == pytest.approx(float(expected[choice.token]), abs=1e-5)
    best = expected.topk(5)
    assert [token for token, _ in choice.top] == best.indices.tolist()
    assert [logprob for _, logprob in choice.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert choice.token == _token(SamplingParams(**params), logits)


def test_so_many_logprobs_as_asked_for() -> None:
    logits = _array(1.0, 2.0, 2.0, 2.0, 0.0)

    def top(count: int) -> list[int]:
        return [token for token, _ in Sampler(SamplingParams(logprobs=count)).choose(logits).top]

    assert (top(0), top(2), top(4), top(20)) == ([], [1, 2], [1, 2, 3, 0], [1, 2, 3, 0, 4])
    assert Sampler(SamplingParams(logprobs=0)).choose(logits).logprob == pytest.approx(
        math.log(math.exp(2) / (3 * math.exp(2) + math.exp(1) + 1))
    )


def test_a_seed_repeats_and_another_does_not() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        return [sampler.choose(_logits(step)).token for step in range(30)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from([3, 512, 700, 5000, 40_000]),
    st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    st.sampled_from([0, 40]),
    st.sampled_from([1.0, 0.95]),
    st.sampled_from([0.0, 0.05]),
)
def test_draws_are_those_of_a_plain_sum_in_float64(
    seed: int, vocab: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Unless the random number points to where two tokens meet: there float32 may decide otherwise."""
    logits = _logits(seed, vocab)
    scores = logits.astype(np.float64) / temperature
    weights = np.exp(scores - scores.max())
    order = np.argsort(-weights, kind="stable")
    if 0 < top_k < vocab:
        weights[order[top_k:]] = 0
    if top_p < 1:
        sums = np.cumsum(weights[order])
        weights[order[sums - weights[order] >= top_p * sums[-1]]] = 0
    weights[weights < min_p] = 0  # the largest is 1
    ends = np.cumsum(weights) / weights.sum()
    chance = random.Random(seed).random()
    near = np.flatnonzero((np.append(0, ends[:-1]) < chance + 3e-6) & (ends > chance - 3e-6))
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    assert _token(params, logits) in near
    assert len(near) < 9 or vocab > 1000


@pytest.mark.parametrize("size", [1, 511, 512, 513, 1024, 2000])
def test_what_weighs_nothing_is_never_drawn(size: int) -> None:
    weights = np.zeros(size, np.float32)
    for place in {0, size // 2, size - 1}:
        weights[:] = 0
        weights[place] = 0.1
        assert {drawn(weights, chance) for chance in (0.0, 0.3, 1.0 - 2**-53, 1.0)} == {place}


@pytest.mark.parametrize("min_p", [0.0, 0.2])
def test_sampling_follows_the_distribution(min_p: float) -> None:
    probabilities = _array(0.5, 0.3, 0.15, 0.05)
    sampler = Sampler(SamplingParams(temperature=1.0, seed=3, min_p=min_p))
    counts = np.zeros(4)
    for _ in range(4000):
        counts[sampler.choose(np.log(probabilities)).token] += 1
    kept = np.where(probabilities >= min_p * 0.5, probabilities, 0.0)
    assert np.allclose(counts / 4000, kept / kept.sum(), atol=0.03)
    assert counts[3] == 0 or not min_p


class Odd:
    """A guide that lets only odd tokens follow, three times."""

    def __init__(self) -> None:
        self.accepted: list[int] = []

    @property
    def is_over(self) -> bool:
        return len(self.accepted) == 3

    def allows(self, token: int) -> bool:
        return token % 2 == 1

    def allowed(self) -> np.ndarray:
        return np.arange(1, VOCAB, 2)

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    def forced(self) -> tuple[int, ...]:
        return (1, 3) if not self.accepted else ()

    def copy(self) -> Odd:
        other = Odd()
        other.accepted = [*self.accepted]
        return other


@pytest.mark.parametrize(
    "params",
    [{}, {"temperature": 1.0, "seed": 4}, {"top_k": 3, "temperature": 2.0}, {"logit_bias": {2: 100}}],
)
def test_a_guide_has_the_last_word(params: dict[str, Any]) -> None:
    guide = Odd()
    sampler = Sampler(SamplingParams(logprobs=1, **params), guide=guide)
    chosen = []
    while not sampler.is_over:
        chosen.append(sampler.choose(_logits(len(chosen))))
    assert [choice.token for choice in chosen] == guide.accepted
    assert all(token % 2 == 1 for token in guide.accepted)
    assert len(chosen) == 3
    whole = torch.log_softmax(torch.from_numpy(_logits(0)), 0)
    assert chosen[0].logprob == pytest.approx(float(whole[chosen[0].token]), abs=1e-4)


def test_what_a_guide_forces_is_told() -> None:
    sampler = Sampler(SamplingParams(), guide=Odd())
    assert sampler.forced == (1, 3)
    sampler.choose(_logits(1))
    assert sampler.forced == Sampler(SamplingParams()).forced == ()


def test_guesses_are_tried_on_a_copy_of_the_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = Odd()
    sampler = Sampler(SamplingParams(), guide=guide)
    assert [sampler.fitting()(guesses) for guesses in ([], [1, 5], [1, 2, 3], [2], [1, 3, 5, 7])] == [
        0,
        2,
        1,
        0,
        3,
    ]
    before = sampler.fitting()
    sampler.choose(_logits(0))
    assert (before([1, 3, 5, 7]), sampler.fitting()([1, 3, 5])) == (3, 2)
    assert len(guide.accepted) == 1
    monkeypatch.setattr(sampling, "TRIES_S", -1.0)
    assert sampler.fitting()([1]) == 0  # a guide that is too slow to try guesses on
    assert sampler.fitting()([]) == 0
    assert Sampler(SamplingParams()).fitting()([2, 4, 6, 8]) == 4


def test_a_greedy_guided_choice_is_the_best_of_those_allowed() -> None:
    sampler = Sampler(SamplingParams(), guide=Odd())
    for step in range(3):
        logits = _logits(step)
        assert sampler.choose(logits).token == 1 + 2 * int(logits[1::2].argmax())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    st.floats(1e-30, 1e6),
    st.integers(0, 50),
    st.floats(1e-6, 1.0),
    st.floats(0.0, 1.0),
    st.integers(0, 2**64),
)
def test_always_some_token_of_the_vocabulary(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    assert 0 <= _token(params, _array(*logits)) < len(logits)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", True),
        ("temperature", "1"),
        ("temperature", None),
        ("temperature", 10**400),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", False),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("frequency_penalty", 2.1),
        ("presence_penalty", math.nan),
        ("presence_penalty", -2.5),
        ("logit_bias", [1]),
        ("logit_bias", {"1": 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {True: 1.0}),
        ("logit_bias", {1: 100.5}),
        ("logit_bias", {1: None}),
        ("seed", "x"),
        ("seed", True),
        ("logprobs", 21),
        ("logprobs", -1),
        ("logprobs", True),
    ],
)
def test_impossible_parameters_are_named(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_a_bias_stays_as_it_was_given() -> None:
    bias = {1: 2.0}
    params = SamplingParams(logit_bias=bias)
    bias[2] = 1000.0
    assert params.logit_bias == {1: 2.0}


def test_numbers_of_numpy_are_numbers() -> None:
    SamplingParams(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.int32(1))  # type: ignore[arg-type]
