"""A guide that begins late, or not at all."""

from __future__ import annotations

import random

import numpy as np
import pytest

from swarm_node.client.guided.guide_start import GuideStart, StartedGuide

VOCABULARY = 10
ALL = set(range(VOCABULARY))


class InOrder:
    """Lets only these tokens follow, in this order."""

    def __init__(self, *tokens: int) -> None:
        self._left = list(tokens)

    @property
    def is_over(self) -> bool:
        return not self._left

    def allows(self, token: int) -> bool:
        return token in self._left[:1]

    def allowed(self) -> np.ndarray:
        return np.array(self._left[:1])

    def accept(self, token: int) -> None:
        assert self._left.pop(0) == token

    def forced(self) -> tuple[int, ...]:
        return tuple(self._left)

    def copy(self) -> InOrder:
        return InOrder(*self._left)


def _allowed(guide: StartedGuide) -> set[int]:
    allowed = set(guide.allowed().tolist())
    assert allowed == {token for token in range(VOCABULARY) if guide.allows(token)}
    return allowed


def _after(start: GuideStart, *tokens: int) -> StartedGuide:
    guide = StartedGuide(lambda: InOrder(1, 2), start, VOCABULARY)
    for token in tokens:
        assert guide.allows(token)
        guide.accept(token)
    return guide


@pytest.mark.parametrize("seed", range(40))
def test_a_copy_goes_its_own_way(seed: int) -> None:
    rng = random.Random(seed)
    start = GuideStart(
        thinking=(8, 9) if rng.random() < 0.3 else (),
        thinks=(((7,), (9,)), ((1, 7), (9,))),
        unless=((3, 4), (1, 5)) if rng.random() < 0.5 else (),
    )
    way: list[int] = []
    guide = _after(start)
    while len(way) < 8 and not guide.is_over:
        copied, then = guide.copy(), rng.choice(sorted(_allowed(guide)))
        copied.accept(then)
        assert _seen(guide) == _seen(_after(start, *way))  # it has not moved
        assert _seen(copied) == _seen(_after(start, *way, then))
        if rng.random() < 0.5:
            guide.accept(then)
        else:
            guide = copied
        way.append(then)


def _seen(guide: StartedGuide) -> tuple[object, ...]:
    return guide.is_over, guide.is_over or sorted(_allowed(guide)), guide.forced()


def test_it_waits_for_the_end_of_thoughts() -> None:
    start = GuideStart(thinking=(8, 9))
    assert _allowed(_after(start)) == _allowed(_after(start, 8, 8)) == ALL
    assert _after(start, 1).forced() == ()
    guide = _after(start, 8, 8, 9)
    assert (_allowed(guide), guide.forced(), guide.is_over) == ({1}, (1, 2), False)
    assert _after(start, 8, 9, 1, 2).is_over


def test_thoughts_may_come_first() -> None:
    start = GuideStart(thinks=(((7,), (9,)), ((1, 7), (9,))))
    assert _allowed(_after(start)) == {1, 7}
    assert _after(start).forced() == ()
    assert _allowed(_after(start, 7, 1)) == ALL
    assert _allowed(_after(start, 7, 1, 9)) == {1}
    assert _allowed(_after(start, 1)) == {2, 7}
    assert _allowed(_after(start, 1, 7, 3, 9)) == {1}


def test_after_thoughts_a_call_may_come() -> None:
    start = GuideStart(thinks=(((7,), (9,)),), unless=((3, 4),))
    assert _allowed(_after(start, 7, 1, 9)) == {1, 3}
    assert _allowed(_after(start, 7, 1, 9, 3)) == {4}
    assert _allowed(_after(start, 7, 1, 9, 3, 4)) == ALL


def test_another_beginning_sets_free() -> None:
    start = GuideStart(unless=((3, 4), (1, 5)))
    assert _allowed(_after(start)) == {1, 3}
    assert _allowed(_after(start, 3)) == {4}
    assert _allowed(_after(start, 3, 4)) == ALL
    assert not _after(start, 3, 4, 1, 2).is_over
    assert _allowed(_after(start, 1)) == {2, 5}
    assert _allowed(_after(start, 1, 5)) == ALL
    assert _after(start, 1, 2).is_over
