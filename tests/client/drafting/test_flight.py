"""Whatever is guessed, sent ahead and left out: an answer is the plain one, chosen from its rows."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

import numpy as np
import pytest

from swarm_node.client.decoding.head_batch import HeadBatcher
from swarm_node.client.decoding.sampling import Sampler, SamplingParams
from swarm_node.client.drafting.flight import STEP_TOKENS, Came, Flight, Judged, Sent
from swarm_node.client.drafting.source import Guess
from swarm_node.client.drafting.tree import MOST_DEPTH, Branch

FEW = 4
PROMPT = (0, 1, 2)
LENGTH = 60


class Model:
    """Each line of tokens has a row of its own, and logits that follow from the line alone."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._names: dict[tuple[int, ...], int] = {}
        self._lines: list[tuple[int, ...]] = []
        self._drawn: dict[tuple[int, ...], np.ndarray] = {}  # the end of a line and its length → logits

    def row(self, line: Sequence[int]) -> list[float]:
        name = self._names.setdefault(tuple(line), len(self._names))
        if name == len(self._lines):
            self._lines.append(tuple(line))
        return [float(name)]

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        lines = [self._lines[int(name)] for name in hidden[:, 0]]
        return np.array([self._draw((*line[-3:], len(line))) for line in lines], np.float32)

    def _draw(self, seed: tuple[int, ...]) -> np.ndarray:
        if seed not in self._drawn:
            self._drawn[seed] = np.random.default_rng([self._seed, *seed]).standard_normal(FEW)
        return self._drawn[seed]

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        return np.array(ids, np.float32)[:, None]


class FakeStream:
    """Holds tokens, and gives rows of them, those of branches with the chance ``room``."""

    def __init__(self, model: Model, rng: random.Random, room: float) -> None:
        self.ids = list(PROMPT)
        self.voided = 0
        self._model, self._rng, self._room = model, rng, room
        self._under_way: deque[np.ndarray] = deque()
        self._answered = len(PROMPT)

    @property
    def length(self) -> int:
        return len(self.ids)

    def send(
        self,
        ids: Sequence[int],
        x: np.ndarray | None = None,
        branches: Sequence[tuple[int, Sequence[int]]] = (),
    ) -> None:
        assert 1 <= len(ids) <= STEP_TOKENS
        assert x is None or np.array_equal(x, self._model.embed(ids))
        begin = len(self.ids)
        self.ids += ids
        rows = [self._model.row(self.ids[: begin + number + 1]) for number in range(len(ids))]
        came = branches and self._rng.random() < self._room
        for row, tokens in branches if came else ():
            assert 0 <= row < len(ids)
            assert tokens[0] != ids[row]
            line = [*self.ids[: begin + row], *tokens]
            rows += [self._model.row(line[: begin + row + number + 1]) for number in range(len(tokens))]
        self._under_way.append(np.array(rows, np.float32))

    async def receive(self) -> np.ndarray:
        return self._under_way.popleft()

    def rollback(self, length: int) -> None:
        assert len(PROMPT) < length <= len(self.ids)
        del self.ids[length:]
        self._under_way.clear()
        self.voided += 1


def _guess(model: Model, rng: random.Random, line: Sequence[int], not_this: int = -1) -> Guess:
    """Often what is likely there."""
    best = int(model.logits(np.array([model.row(line)], np.float32))[0].argmax())
    token = best if rng.random() < 0.7 else rng.randrange(FEW)
    return Guess(token if token != not_this else (not_this + 1) % FEW, 0.5, ("known", 0))


def _chain(model: Model, rng: random.Random, before: Sequence[int], length: int) -> list[Guess]:
    chain: list[Guess] = []
    while len(chain) < length:
        chain.append(_guess(model, rng, [*before, *(each.token for each in chain)]))
    return chain


def _branches(model: Model, rng: random.Random, before: list[int], chain: Sequence[Guess]) -> list[Branch]:
    branches = []
    for place, guess in enumerate(chain):
        if rng.random() < 0.5:
            continue
        line = [*before, *(each.token for each in chain[:place])]
        taken = [_guess(model, rng, line, guess.token)]
        for _ in range(rng.randint(0, MOST_DEPTH - 1)):
            taken.append(_guess(model, rng, [*line, *(each.token for each in taken)]))
        branches.append(Branch(place, tuple(taken)))
    return branches


def _extend(flight: Flight, model: Model, rng: random.Random, answer: Sequence[int]) -> None:
    before = [*PROMPT, *answer, *flight.tokens]
    chain = _chain(model, rng, before, rng.randint(1, STEP_TOKENS))
    flight.extend(chain, _branches(model, rng, before, chain))


async def _plain(model: Model, sampler: Sampler) -> tuple[list[int], list[np.ndarray]]:
    line, rows = list(PROMPT), []
    while len(line) < len(PROMPT) + LENGTH:
        rows.append(np.array([model.row(line)], np.float32))
        line.append(sampler.choose(model.logits(rows[-1])[0]).token)
    return line[len(PROMPT) :], rows


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(60))
async def test_an_answer_is_the_plain_one(seed: int, temperature: float) -> None:
    rng, model = random.Random(seed), Model(seed)
    params = SamplingParams(temperature=temperature, seed=seed, repetition_penalty=1.1)
    plain, plain_rows = await _plain(model, Sampler(params))
    sampler, heads = Sampler(params), HeadBatcher(model)  # type: ignore[arg-type]
    stream = FakeStream(model, rng, rng.choice([1.0, 0.7, 0.0]))
    chosen = await heads.choose(np.array([model.row(PROMPT)], np.float32), sampler)
    answer, rows = [chosen.choices[0].token], [np.array([model.row(PROMPT)], np.float32)]
    flight = Flight(stream, answer[0])
    while len(answer) < LENGTH:
        if flight.is_over:
            assert [*PROMPT, *answer] == [*stream.ids, *answer[-flight.certain :]]
            room = min(STEP_TOKENS - flight.certain, rng.randrange(4))
            flight.begin(chosen.x, _chain(model, rng, [*PROMPT, *answer], room))
        while not flight.has_turned and rng.random() < 0.6:
            _extend(flight, model, rng, answer)
        came = await flight.receive()
        if came is None:  # the branch was left out
            flight.void()
            continue
        chosen = await heads.choose(came.hidden, sampler, came.draft, came.branches)
        tokens = [choice.token for choice in chosen.choices]
        judged = flight.judge(tokens)
        answer += tokens
        rows += list(judged.rows[:, None])
        _check(judged.guesses, tokens)
        if judged.missed and not flight.has_turned:
            flight.void()
        assert flight.rows >= len(flight.guesses) >= 0
    count = min(len(answer), LENGTH)
    assert answer[:count] == plain[:count]
    assert np.array_equal(np.concatenate(rows)[:LENGTH], np.concatenate(plain_rows))
    await heads.close()


def _check(judged: Sequence[tuple[Sent, int]], tokens: Sequence[int]) -> None:
    """Each guess was looked at once, at a place whose token is known."""
    assert all(token in tokens for _, token in judged)
    assert sum(sent.guess.token == token for sent, token in judged) <= len(tokens)


def _rights(judged: Judged) -> list[tuple[bool, int]]:
    """For each guess whether it was right, and its depth."""
    return [(sent.guess.token == token, sent.depth) for sent, token in judged.guesses]


async def test_a_branch_that_was_right_is_fed_once_more() -> None:
    model, rng = Model(3), random.Random(3)
    stream = FakeStream(model, rng, 1.0)
    sampler, heads = Sampler(SamplingParams()), HeadBatcher(model)  # type: ignore[arg-type]
    plain, _ = await _plain(model, Sampler(SamplingParams()))
    flight = Flight(stream, plain[0])
    wrong = [Guess((token + 1) % FEW, 0.5, ("known", 0)) for token in plain]
    right = [Guess(token, 0.5, ("known", 0)) for token in plain]

    async def choose(came: Came | None) -> list[int]:
        assert came is not None
        chosen = await heads.choose(came.hidden, sampler, came.draft, came.branches)
        return [choice.token for choice in chosen.choices]

    await heads.choose(np.array([model.row(PROMPT)], np.float32), sampler)
    flight.begin(None, [])
    flight.extend([*right[1:3], wrong[3], wrong[4]], [Branch(2, tuple(right[3:6]))])
    flight.extend(wrong[5:7])
    assert flight.nodes == 3
    assert flight.rows == 4 + 2 + (2 + 3)
    judged = flight.judge(await choose(await flight.receive()))
    assert [sent.depth for sent, _ in judged.guesses] == [1]
    tokens = await choose(await flight.receive())
    assert tokens == plain[2:7]  # one of the chain, four behind it
    judged = flight.judge(tokens)
    assert [sent.depth for sent, _ in judged.guesses] == [2, 3, 3, 4, 5]
    assert judged.missed
    flight.void()
    assert stream.ids == [*PROMPT, *plain[:3]]
    assert flight.certain == 4
    flight.begin(None, right[7:9])
    assert stream.ids == [*PROMPT, *plain[:9]]
    tokens = await choose(await flight.receive())
    assert tokens == plain[7:10]
    assert not flight.judge(tokens).missed
    assert flight.is_over
    # The first guess of a step is wrong, and its branch is in that step: the answer goes on there.
    flight.begin(None, [])
    flight.extend([wrong[10]], [Branch(0, tuple(right[10:12]))])
    flight.extend(wrong[11:13])
    judged = flight.judge(await choose(await flight.receive()))
    assert _rights(judged) == [(False, 1), (True, 1)]
    assert flight.has_turned
    assert flight.tokens == []
    tokens = await choose(await flight.receive())
    assert tokens == plain[11:13]
    judged = flight.judge(tokens)
    assert _rights(judged) == [(True, 2)]
    assert judged.missed
    flight.void()
    assert stream.ids == [*PROMPT, *plain[:10]]
    assert flight.certain == 3
    await heads.close()
