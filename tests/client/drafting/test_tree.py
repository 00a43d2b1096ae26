"""Which second guesses are sent, and in which steps: against all that could be."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from swarm_node.client.drafting.source import Guess
from swarm_node.client.drafting.tree import (
    MOST_DEPTH,
    MOST_ROWS,
    Branch,
    Soil,
    computed,
    grow,
    is_second,
    second,
)

FEW = 5


class Known:
    """A source that guesses something behind every line of tokens, the same whenever it is asked."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.asked: list[tuple[int, ...]] = []

    def guess(self, line: Sequence[int]) -> Guess | None:
        rng = random.Random(f"{self.seed} {list(line)}")
        if rng.random() < 0.1:
            return None
        likely = rng.uniform(0.3, 0.95)
        other = (rng.randrange(FEW), rng.uniform(0, 1 - likely)) if rng.random() < 0.8 else None
        return Guess(rng.randrange(FEW), likely, ("known", 0), other)

    async def ask(self, line: Sequence[int]) -> Guess | None:
        self.asked.append(tuple(line))
        return self.guess(line)

    def chain(self, length: int) -> list[Guess]:
        chain: list[Guess] = []
        while len(chain) < length and (guess := self.guess([each.token for each in chain])) is not None:
            chain.append(guess)
        return chain


DEFAULTS: dict[str, object] = {
    "reach": 0.9,
    "room": 100,
    "rows": 10**6,
    "least_asked": 0.0,
    "held_up": 0.0,
    "most": 10**6,
    "allows": lambda line: True,
}


def _soil(known: Known, least: float, **changes: object) -> Soil:
    given = {**DEFAULTS, **changes}
    return Soil(chance=lambda guess: guess.chance, least=least, ask=known.ask, **given)  # type: ignore[arg-type]


def _all(known: Known, chain: Sequence[Guess], soil: Soil) -> dict[int, list[tuple[int, float]]]:
    """By place: every guess of a branch there whose chance is worth a row, and that chance."""
    found: dict[int, list[tuple[int, float]]] = {}
    reach = soil.reach
    for place, guess in enumerate(chain):
        line, next_, chance = [each.token for each in chain[:place]], second(guess), reach
        while next_ is not None and len(line) < min(soil.room, place + MOST_DEPTH):
            before, chance = chance, chance * next_.chance
            if chance < soil.least or not soil.allows([*line, next_.token]):
                break
            if place in found and before < soil.least_asked:
                break
            found.setdefault(place, []).append((next_.token, chance))
            line.append(next_.token)
            next_ = known.guess(line)
        reach *= guess.chance
    return found


def _tokens(found: Sequence[Branch]) -> dict[int, list[int]]:
    return {branch.place: list(branch.tokens) for branch in found}


def _cut(rng: random.Random, length: int, most: int = 8) -> list[int]:
    cut: list[int] = []
    while length:
        cut.append(rng.randint(1, min(most, length)))
        length -= cut[-1]
    return cut


@pytest.mark.parametrize("seed", range(150))
async def test_branches_have_all_that_is_worth_its_rows(seed: int) -> None:
    rng = random.Random(seed)
    known = Known(seed)
    chain = known.chain(rng.randint(0, 12))
    banned = rng.randrange(FEW) if rng.random() < 0.3 else -1
    soil = _soil(
        known,
        rng.choice([0.002, 0.01, 0.03, 0.1]),
        room=rng.choice([3, 100]),
        least_asked=rng.choice([0.0, 0.05]),
        allows=lambda line: banned not in line[-1:],
    )
    every = _all(known, chain, soil)
    # Each guess in a step of its own: nothing is computed twice, and no step is full.
    alone = await grow(chain, [1] * len(chain), soil)
    assert _tokens(alone) == {place: [token for token, _ in nodes] for place, nodes in every.items()}
    # In longer steps: those whose worth pays for the rows before them, too.
    cut = _cut(rng, len(chain))
    row = [number for size in cut for number in range(size)]
    paid = {
        place: [token for token, _ in nodes]
        for place, nodes in every.items()
        if sum(chance for _, chance in nodes) >= soil.least * (row[place] + len(nodes))
    }
    if sum(row[place] + len(nodes) for place, nodes in every.items()) + 8 <= MOST_ROWS:
        assert _tokens(await grow(chain, cut, soil)) == paid


@pytest.mark.parametrize("seed", range(100))
async def test_of_too_many_the_likeliest_are_taken(seed: int) -> None:
    rng = random.Random(seed)
    known = Known(seed)
    chain = known.chain(rng.randint(1, 12))
    most = rng.randint(0, 20)
    soil = _soil(known, 0.001, **rng.choice([{"most": most}, {"rows": most}]))
    nodes = _all(known, chain, soil)
    every = sorted((chance for found in nodes.values() for _, chance in found), reverse=True)
    found = await grow(chain, [1] * len(chain), soil)
    taken = [nodes[each.place][number][1] for each in found for number in range(len(each.guesses))]
    assert sorted(taken, reverse=True) == every[:most]
    assert len(known.asked) <= len(taken)  # no more than helps


@pytest.mark.parametrize("seed", range(100))
async def test_a_step_is_never_more_than_hops_take(seed: int) -> None:
    rng = random.Random(seed)
    known = Known(seed)
    chain = known.chain(rng.randint(1, 30))
    cut = _cut(rng, len(chain))
    found = await grow(chain, cut, _soil(known, 0.0001))
    start = 0
    for size in cut:
        own = [replace(each, place=each.place - start) for each in found]
        own = [each for each in own if 0 <= each.place < size]
        assert size + computed(own) <= MOST_ROWS
        assert all(len(each.guesses) <= MOST_DEPTH for each in own)
        start += size


async def test_a_row_that_holds_up_its_step_has_to_promise_more() -> None:
    """Less in later steps, whose results are seldom waited for."""
    known = Known(1)
    chain = [Guess(9, 0.5, ("model", 3), (7, 0.3)) for _ in range(6)]
    free = await grow(chain, [1] * 6, _soil(known, 0.001, reach=1.0))
    assert [branch.place for branch in free] == [0, 1, 2, 3, 4, 5]
    assert await grow(chain, [6], _soil(known, 0.001, reach=1.0, held_up=0.31)) == ()
    half = _soil(known, 0.001, reach=1.0, held_up=0.2, least_asked=1.0)
    assert [branch.place for branch in await grow(chain, [1] * 6, half)] == [0, 1, 2, 3, 4, 5]
    assert [branch.place for branch in await grow(chain, [3, 3], half)] == [0, 3]


async def test_what_is_not_likely_is_not_asked_for() -> None:
    known = Known(1)
    sure = [Guess(number % 7, 0.99, ("model", 7), (9, 0.004)) for number in range(40)]
    assert await grow(sure, [8] * 5, _soil(known, 0.01)) == ()
    copy = [Guess(number % 7, 0.99, ("text", 16)) for number in range(40)]
    assert await grow(copy, [8] * 5, _soil(known, 0.0001)) == ()
    assert not known.asked


def test_a_second_guess_is_of_its_own_kind() -> None:
    other = second(Guess(3, 0.7, ("model", 5), (4, 0.2)))
    assert other == Guess(4, 0.2, ("model second", 5))
    assert is_second(other.kind)
    assert not is_second(("model", 5))
    assert second(Guess(3, 0.7, ("model", 5))) is None
    assert second(Guess(3, 0.7, ("model", 5), (3, 0.2))) is None
