"""Which second guesses are sent, and in which steps: against all that could be."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from swarm_node.client.drafting.source import Guess
from swarm_node.client.drafting.tree import (
    MOST_ROWS,
    STEP_GUESSES,
    Branch,
    Soil,
    branches,
    second,
    sizes,
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


def _soil(known: Known, least: float, **changes: object) -> Soil:
    given: dict[str, object] = {"reach": 0.9, "room": 100, "allows": lambda line: True, **changes}
    return Soil(chance=lambda guess: guess.chance, least=least, ask=known.ask, **given)  # type: ignore[arg-type]


def _all(known: Known, chain: Sequence[Guess], soil: Soil) -> dict[int, list[tuple[int, float]]]:
    """By place: every guess of a branch there whose chance is worth a row, and that chance."""
    found: dict[int, list[tuple[int, float]]] = {}
    reach = soil.reach
    for place, guess in enumerate(chain):
        line, next_, chance = [each.token for each in chain[:place]], second(guess), reach
        while next_ is not None and len(line) < soil.room and soil.allows([*line, next_.token]):
            chance *= next_.chance
            if chance < soil.least:
                break
            found.setdefault(place, []).append((next_.token, chance))
            line.append(next_.token)
            next_ = known.guess(line)
        reach *= guess.chance
    return found


def _tokens(found: Sequence[Branch]) -> dict[int, list[int]]:
    return {branch.place: [guess.token for guess in branch.guesses] for branch in found}


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
        allows=lambda line: banned not in line[-1:],
        most=10**6,
    )
    every = _all(known, chain, soil)
    # Each guess in a step of its own: nothing is computed twice, and no step is full.
    alone = await branches(chain, [1] * len(chain), 0, soil)
    assert _tokens(alone) == {place: [token for token, _ in nodes] for place, nodes in every.items()}
    # In longer steps: those whose worth pays for the rows before them, too.
    first, certain = rng.randint(0, min(3, len(chain))), rng.randint(1, 4)
    cut = sizes(chain, soil, first, 8)
    assert (cut[0], sum(cut)) == (first, len(chain))
    row = [number + (0 if step else certain) for step, size in enumerate(cut) for number in range(size)]
    paid = {
        place: [token for token, _ in nodes]
        for place, nodes in every.items()
        if sum(chance for _, chance in nodes) >= soil.least * (row[place] + len(nodes))
    }
    if sum(row[place] + len(nodes) for place, nodes in every.items()) + 8 <= MOST_ROWS:
        assert _tokens(await branches(chain, cut, certain, soil)) == paid
    possible = _all(known, chain, replace(soil, room=100, allows=lambda line: True))
    for step, size in enumerate(cut[1:], start=1):
        small = any(place >= sum(cut[:step]) for place in possible)
        assert size == min(STEP_GUESSES if small else 8, len(chain) - sum(cut[:step]))


@pytest.mark.parametrize("seed", range(100))
async def test_of_too_many_the_likeliest_are_taken(seed: int) -> None:
    rng = random.Random(seed)
    known = Known(seed)
    chain = known.chain(rng.randint(1, 12))
    soil = _soil(known, 0.001, most=rng.randint(0, 20))
    every = sorted(
        (chance for nodes in _all(known, chain, soil).values() for _, chance in nodes), reverse=True
    )
    found = await branches(chain, [1] * len(chain), 0, soil)
    nodes = _all(known, chain, soil)
    taken = [nodes[each.place][number][1] for each in found for number in range(len(each.guesses))]
    assert sorted(taken, reverse=True) == every[: soil.most]
    assert len(known.asked) <= max(0, soil.most - 1)  # no more than helps


@pytest.mark.parametrize("seed", range(100))
async def test_a_step_is_never_more_than_hops_take(seed: int) -> None:
    rng = random.Random(seed)
    known = Known(seed)
    chain = known.chain(rng.randint(1, 30))
    cut, left = [rng.randint(0, 4)], 0
    cut = [min(cut[0], len(chain))]
    while (left := len(chain) - sum(cut)) > 0:
        cut.append(min(left, rng.randint(1, 8)))
    certain = rng.randint(1, 4)
    found = _tokens(await branches(chain, cut, certain, _soil(known, 0.0001, most=10**6)))
    start = 0
    for step, size in enumerate(cut):
        before = 0 if step else certain
        rows = before + size
        for place in range(start, start + size):
            if place in found:
                rows += before + place - start + len(found[place])
        assert rows <= MOST_ROWS
        start += size


async def test_a_certain_copy_has_no_branches_and_long_steps() -> None:
    known = Known(1)
    copy = [Guess(number % 7, 0.99, ("text", 16)) for number in range(40)]
    soil = _soil(known, 0.01)
    assert sizes(copy, soil, 0, 8) == [0, 8, 8, 8, 8, 8]
    assert await branches(copy, sizes(copy, soil, 0, 8), 1, soil) == ()
    sure = [Guess(number % 7, 0.995, ("model", 7), (9, 0.004)) for number in range(40)]
    assert sizes(sure, soil, 3, 8) == [3, 8, 8, 8, 8, 5]
    assert not known.asked


def test_a_second_guess_is_of_its_own_kind() -> None:
    assert second(Guess(3, 0.7, ("model", 5), (4, 0.2))) == Guess(4, 0.2, ("model second", 5))
    assert second(Guess(3, 0.7, ("model", 5))) is None
    assert second(Guess(3, 0.7, ("model", 5), (3, 0.2))) is None
