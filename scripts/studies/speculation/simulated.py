"""Answers over a simulated route: links with a latency and a rate, hops that take a time for each step and
each row, void steps, and a head; by the code that decides in a client, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from swarm_node.client.drafting.drafter import Drafter
from swarm_node.client.drafting.flight import Came
from swarm_node.client.drafting.source import Guess, Source
from swarm_node.client.hops.trace import HopTimings, Repair, Speculated
from swarm_node.swarm.routing.prediction import EdgePrediction, HopPrediction, Prediction
from swarm_node.swarm.types import Span
from tests.doubles.virtual_time import VirtualLoop

VOCABULARY = 50_000
GAP_S = 1e-6
"""Between two steps on a link, so that they stay in order."""
PROMPT_TOKENS = 100
"""Of a predicted prompt."""


@dataclass(frozen=True, slots=True)
class SimulatedRoute:
    """Seconds: ``latency_s`` on each link, one way; ``step_s`` and ``row_s`` at each of ``hops`` for a step
    and for each of its rows; ``head_s`` for choosing from up to eight rows. A row has ``row_bytes``, a link
    takes ``bytes_per_s``. ``jitter``: by what part a step takes longer at a hop, on average. ``told`` and
    ``told_steps``, ``told_links``: the predicted times of rows, those of steps of one row, and those of links
    are this many times the true ones."""

    hops: int = 3
    latency_s: float = 0.05
    step_s: float = 0.0031
    row_s: float = 0.0004
    head_s: float = 0.003
    row_bytes: int = 0
    bytes_per_s: float = 1e12
    jitter: float = 0.0
    told: float = 1.0
    told_steps: float = 1.0
    told_links: float = 1.0
    takes_branches: bool = True

    @property
    def trip_s(self) -> float:
        """Of a plain token, without jitter."""
        link_s = self.latency_s + self.row_bytes / self.bytes_per_s
        return (self.hops + 1) * link_s + self.hops * (self.step_s + self.row_s) + self.head_s

    def predicted(self) -> Prediction:
        compute_s, row_s = (self.step_s + self.row_s) * self.told_steps, self.row_s * self.told
        hop = HopPrediction("", Span(0, 1), 0.0, compute_s, row_s * PROMPT_TOKENS)
        link_s = (self.latency_s + self.row_bytes / self.bytes_per_s) * self.told_links
        edge = EdgePrediction("", "", link_s, True, True)
        edges = (edge,) * (self.hops + 1)
        return Prediction((hop,) * self.hops, edges, row_s * PROMPT_TOKENS, PROMPT_TOKENS)


@dataclass(frozen=True, slots=True)
class _Step:
    number: int
    rows: int
    again: int = 0


class _Link:
    def __init__(self, route: SimulatedRoute, deliver: Callable[[_Step], None]) -> None:
        self._route = route
        self._deliver = deliver
        self._free_at = 0.0

    def take(self, step: _Step) -> None:
        loop, route = asyncio.get_running_loop(), self._route
        begun_at = max(loop.time(), self._free_at)
        self._free_at = begun_at + GAP_S + step.rows * route.row_bytes / route.bytes_per_s
        loop.call_at(self._free_at + route.latency_s, self._deliver, step)


class _Hop:
    def __init__(self, route: SimulatedRoute, noise: random.Random, deliver: Callable[[_Step], None]) -> None:
        self._route = route
        self._noise = noise
        self._deliver = deliver
        self._queue: deque[_Step] = deque()
        self._busy = False
        self._void_before = 0

    def take(self, step: _Step) -> None:
        self._queue.append(step)
        if not self._busy:
            self._begin()

    def void(self, before: int) -> None:
        """Steps below ``before`` that are not begun are dropped."""
        self._void_before = max(self._void_before, before)

    def _begin(self) -> None:
        while self._queue and self._queue[0].number < self._void_before:
            self._queue.popleft()
        self._busy = bool(self._queue)
        if self._busy:
            step, route = self._queue.popleft(), self._route
            seconds = route.step_s + (step.rows + step.again) * route.row_s
            if route.jitter:
                seconds *= 1 + self._noise.expovariate(1 / route.jitter)
            asyncio.get_running_loop().call_later(seconds, self._end, step)

    def _end(self, step: _Step) -> None:
        self._deliver(step)
        self._begin()


class SimulatedSession:
    """In a ``SwarmSession``'s place. ``rows``: that hops computed or dropped for this answer."""

    most_ahead = 128
    repaired: Sequence[Repair] = ()
    hops: Sequence[HopTimings] = ()
    line_row_s = 0.0

    def __init__(self, route: SimulatedRoute, seed: int, predicted: bool = True) -> None:
        self.length = 0
        self.takes_branches = route.takes_branches
        self.predicted = route.predicted() if predicted else None
        self._latency_s = route.latency_s
        self._number = 0
        self._under_way: deque[_Step] = deque()
        self._results: asyncio.Queue[_Step] = asyncio.Queue()
        noise = random.Random(seed)
        self._hops: list[_Hop] = []
        link = _Link(route, self._results.put_nowait)
        for _ in range(route.hops):
            self._hops.append(_Hop(route, noise, link.take))
            link = _Link(route, self._hops[-1].take)
        self._first = link

    async def look_around(self) -> None:
        pass

    def send(
        self,
        ids: Sequence[int],
        x: np.ndarray | None = None,
        branches: Sequence[tuple[int, Sequence[int]]] = (),
    ) -> None:
        """Hops compute the rows that a branch has before it once more."""
        self._number += 1
        self.length += len(ids)
        own = sum(len(tokens) for _, tokens in branches)
        again = sum(row for row, _ in branches)
        self._under_way.append(_Step(self._number, len(ids) + own, again))
        self._first.take(self._under_way[-1])

    async def receive(self) -> np.ndarray:
        wanted = self._under_way.popleft()
        while (step := await self._results.get()) != wanted:
            assert step.number < wanted.number  # void
        return np.zeros((step.rows, 1), np.float32)

    def rollback(self, length: int) -> None:
        self.length = length
        self._under_way.clear()
        for hop in self._hops:
            asyncio.get_running_loop().call_later(self._latency_s, hop.void, self._number + 1)


class PositionGuesses:
    """A source that is right at each place of ``answer`` or not, whatever it is asked behind. ``right``: the
    chance of that, ``second``: that the other guess is. ``told``, ``told_second``: the chances that it
    claims; without the latter, or ``second``, there is no other guess. Each guess takes ``seconds``."""

    def __init__(
        self,
        answer: Sequence[int],
        right: float,
        told: float,
        *,
        second: float = 0.0,
        told_second: float | None = None,
        seconds: float = 0.0,
        seed: int = 1,
    ) -> None:
        rng = random.Random(seed)
        claimed = second if told_second is None else told_second
        self._guesses: list[tuple[int, tuple[int, float] | None]] = []
        for token in answer:
            draw, wrong = rng.random(), VOCABULARY + token
            other = token if right <= draw < right + second else wrong + 1
            self._guesses.append((token if draw < right else wrong, (other, claimed) if claimed else None))
        self._told = told
        self._seconds = seconds
        self._came = 0

    def came(self, tokens: Sequence[int], hidden: np.ndarray) -> None:
        self._came += len(tokens)

    async def guess(self, after: Sequence[int]) -> Guess | None:
        place = self._came + len(after)
        if self._seconds:
            await asyncio.sleep(self._seconds)
        if place >= len(self._guesses):
            return None
        token, other = self._guesses[place]
        return Guess(token, self._told, ("known", 0), other)

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Simulated:
    """``seconds`` from the first token to the last of ``tokens``; ``plain_s``: what plain decoding takes."""

    seconds: float
    plain_s: float
    tokens: int
    speculated: Speculated

    @property
    def times(self) -> float:
        return self.plain_s / self.seconds


def simulate(
    prompt: Sequence[int],
    answer: Sequence[int],
    route: SimulatedRoute,
    source: Source | None = None,
    *,
    seed: int = 1,
    predicted: bool = True,
    clock_noise: float = 0.0,
) -> Simulated:
    """``clock_noise``: what the decisions see of the time is wrong by up to this part of a trip."""
    seconds, speculated = _run(prompt, answer, route, source, seed, predicted, clock_noise, True)
    plain_s = (len(answer) - 1) * route.trip_s
    if route.jitter:
        plain_s = _plain_s(len(answer), route, seed + 1)
    return Simulated(seconds, plain_s, len(answer), speculated)


@cache
def _plain_s(tokens: int, route: SimulatedRoute, seed: int) -> float:
    """The same whatever the tokens say: nothing is guessed."""
    return _run([0], [0] * tokens, route, None, seed, True, 0.0, False)[0]


def _run(
    prompt: Sequence[int],
    answer: Sequence[int],
    route: SimulatedRoute,
    source: Source | None,
    seed: int,
    predicted: bool,
    clock_noise: float,
    speculate: bool,
) -> tuple[float, Speculated]:
    loop = VirtualLoop()
    noise = random.Random(seed + 7)

    def clock() -> float:
        return loop.time() + noise.random() * clock_noise * route.trip_s

    async def run() -> tuple[float, Speculated]:
        session = SimulatedSession(route, seed, predicted)
        drafter = Drafter(prompt, len(answer), frozenset(), source, speculate=speculate, clock=clock)
        await drafter.read()
        began, made, x = loop.time(), 1, np.zeros((1, 1), np.float32)
        drafter.chosen(session, [answer[0]], Came(x), ended=False)
        while made < len(answer):
            await drafter.go_on(x)
            came = await drafter.receive()
            await asyncio.sleep(route.head_s)
            tokens = _chosen(answer[made:], came)
            made += len(tokens)
            drafter.chosen(session, tokens, came, ended=made == len(answer))
        seconds = loop.time() - began
        drafter.close()
        return seconds, drafter.speculated

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(run())


def _chosen(answer: Sequence[int], came: Came) -> list[int]:
    """What the rows say, up to the first that was guessed wrong, and in a branch that was right there."""
    chain = len(came.hidden) - sum(len(tokens) for _, tokens in came.branches)
    right = _right(answer[:chain], came.draft)
    for row, tokens in came.branches:
        if row == right + 1 and tokens[0] == answer[right]:
            return list(answer[: row + 1 + _right(answer[row : row + len(tokens) - 1], tokens[1:])])
    return list(answer[: min(chain, right + 1)])


def _right(answer: Sequence[int], guesses: Sequence[int]) -> int:
    """How many guesses are right, from the first on."""
    pairs = enumerate(zip(answer, guesses, strict=False))
    return next(
        (number for number, (token, guess) in pairs if token != guess), min(len(answer), len(guesses))
    )


# Texts: a prompt, and its answer.

Text = tuple[list[int], list[int]]


def new_text(tokens: int, seed: int = 1) -> Text:
    """Nothing of it is in the prompt."""
    rng = random.Random(seed)
    return [rng.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS)], [
        rng.randrange(VOCABULARY) for _ in range(tokens)
    ]


def copy(tokens: int, every: int = 0, seed: int = 1) -> Text:
    """The answer is in the prompt, but for each token number ``every``."""
    prompt, answer = new_text(tokens, seed)
    replaced = [
        VOCABULARY + number if every and number % every == every - 1 else token
        for number, token in enumerate(answer)
    ]
    return [*prompt, *answer, *prompt[:9]], replaced


def misleading(tokens: int, seed: int = 1, words: int = 12) -> Text:
    """Of few words, so that something like its end was there often, and went on otherwise."""
    rng = random.Random(seed)
    text = [rng.randrange(words) for _ in range(PROMPT_TOKENS + tokens)]
    return text[:PROMPT_TOKENS], text[PROMPT_TOKENS:]


def changing(tokens: int, seed: int = 1) -> Text:
    """Copies and new text in turns, of 5 to 25 tokens each."""
    rng = random.Random(seed)
    prompt, new = new_text(tokens, seed)
    answer: list[int] = []
    while len(answer) < tokens:
        length = rng.randrange(5, 25)
        start = rng.randrange(len(prompt) - 25)
        answer += prompt[start : start + length]
        answer += new[len(answer) : len(answer) + rng.randrange(5, 25)]
    return prompt, answer[:tokens]


DEAR_HOPS = SimulatedRoute(step_s=0.0031, row_s=0.02)
FAST_HOPS = SimulatedRoute(step_s=0.010, row_s=0.00005)
USUAL_HOPS = SimulatedRoute()
SLOW_LINES = replace(USUAL_HOPS, row_bytes=4096, bytes_per_s=20e6 / 8)
NEAR = SimulatedRoute(latency_s=0.0002)
ALONE = SimulatedRoute(hops=1, latency_s=0.0001)
