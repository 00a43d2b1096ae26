"""What is read off the rows of a model that guesses, and how a task asks it while an answer's tokens come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from swarm_node.client.drafting.at_hand import AtHand
from swarm_node.client.drafting.chances import Chances
from swarm_node.client.drafting.drafter import Drafter
from swarm_node.client.drafting.flight import Came
from swarm_node.client.drafting.sending import Sending
from swarm_node.client.drafting.source import Guess, two_likeliest
from swarm_node.client.drafting.worth import Choice, Worth
from tests.doubles.fake_swarm import settle
from tests.doubles.oracle import Recorded, send_all

ROW = np.zeros((1, 1), np.float32)
ANSWER = [*range(10, 40)]


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


@pytest.fixture(autouse=True)
def drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    send_all(monkeypatch)


class Gated:
    """A ``Source`` that knows ANSWER. ``held``: calls, from 0 on, that wait for ``go``."""

    def __init__(self, *held: int) -> None:
        self.asked: list[list[int]] = []
        self.go = asyncio.Event()
        self.fault: Exception | None = None
        self._held = held
        self._came = 0

    def came(self, tokens: Sequence[int], hidden: np.ndarray) -> None:
        self._came += len(tokens)

    async def guess(self, after: Sequence[int]) -> Guess:
        number = len(self.asked)
        self.asked.append([*ANSWER[: self._came], *after])
        token = ANSWER[self._came + len(after)]
        if number in self._held:
            await self.go.wait()
            self.go.clear()
        if self.fault is not None:
            raise self.fault
        return Guess(token, 0.8, ("gated", 0))

    def close(self) -> None:
        pass


class OnlyTheAnswer:
    """Rules by which ANSWER alone may come. ``chosen``: so many tokens were."""

    forced = ()

    def __init__(self) -> None:
        self.chosen = 1

    def fitting(self) -> Callable[[Sequence[int]], int]:
        rest = ANSWER[self.chosen :]

        def fit(guesses: Sequence[int]) -> int:
            wrong = (at for at, token in enumerate(guesses) if rest[at] != token)
            return next(wrong, len(guesses))

        return fit


async def _at_second_token(source: Gated, rules: OnlyTheAnswer | None = None) -> tuple[Drafter, Recorded]:
    """Two tokens were chosen, and the source has guessed what it may behind them; nothing of it is sent."""
    session = Recorded()
    drafter = Drafter([1], len(ANSWER), frozenset(), source)
    drafter.chosen(session, ANSWER[:1], Came(ROW), ended=False)
    await drafter.go_on(ROW, rules)
    await settle()
    came = await drafter.receive()
    if rules is not None:
        rules.chosen += 1
    drafter.chosen(session, ANSWER[1:2], came, ended=False)
    source.go.set()
    await settle()
    return drafter, session


async def test_what_is_guessed_follows_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not all that waits is worth a row with the next certain token, and a guess is being made."""
    monkeypatch.setattr(Worth, "choose", lambda self, chances: Choice(1))
    source = Gated(0, 4)
    drafter, session = await _at_second_token(source)
    assert source.asked[-1] == ANSWER[:5]  # three wait
    await drafter.go_on(ROW)
    source.go.set()
    await settle()
    assert session.sent[1] == ANSWER[1:3]
    assert all(line == ANSWER[: len(line)] for line in source.asked)
    assert [token for step in session.sent for token in step] == ANSWER[: session.length]
    drafter.close()


async def test_a_guide_looks_at_guesses_behind_the_newest_token() -> None:
    """Also before the next tokens are sent, which the guide's state is asked for."""
    drafter, session = await _at_second_token(Gated(0), rules := OnlyTheAnswer())
    await drafter.go_on(ROW, rules)
    assert [token for step in session.sent for token in step] == ANSWER[: session.length]
    assert session.length > 2
    drafter.close()


async def test_a_fault_of_a_source_is_raised() -> None:
    """Whenever it happens: another task must not take the place of the one that failed."""
    source = Gated(0)
    source.fault = ValueError("a fault of this process")
    drafter, _ = await _at_second_token(source)
    with pytest.raises(ValueError, match="of this process"):
        await drafter.go_on(ROW)
    drafter.close()


async def test_an_answer_goes_on_without_a_source_that_cannot() -> None:
    source = Gated(0)
    source.fault = RuntimeError("closed")
    drafter, session = await _at_second_token(source)
    await drafter.go_on(ROW)
    assert session.sent == [ANSWER[:1], ANSWER[1:2]]
    drafter.close()


async def test_what_is_at_hand_ends_where_the_answer_would(monkeypatch: pytest.MonkeyPatch) -> None:
    at_hand = AtHand(Chances(), frozenset({99}))
    await at_hand.read([10, 11, 12, 99, 10])

    def chain(after: Sequence[int] = (), most: int = 9) -> list[int]:
        return [guess.token for guess in at_hand.chain(after, most)]

    assert chain() == [11, 12]  # nothing of what follows an end would be used
    assert (chain([11]), chain(most=1), chain(most=0)) == ([12], [11], [])
    rules = OnlyTheAnswer()
    at_hand.follow(rules)  # by which 11 may come, and 12 behind it
    assert chain() == [11, 12]
    at_hand.came([11])
    assert chain() == [12]  # the rules were asked before that
    monkeypatch.setattr(rules, "forced", (12, 13))
    assert chain() == [12, 13]
    assert chain([14]) == []


async def test_an_answer_sends_as_many_guesses_as_it_has_tokens_left() -> None:
    session, chances = Recorded(), Chances()
    sending = Sending(session, ANSWER[:1], 6, chances, lambda: 0.0)
    guesses = [Guess(token, 0.8, ("known", 0)) for token in (11, 12, 0, 14, 15)]
    assert (sending.left, sending.room(0), sending.room(3)) == (4, 4, 1)
    assert sending.begin(ROW, guesses[:4]) == 4
    assert session.sent == [[10, 11, 12, 0], [14]]
    assert await sending.receive() is not None
    judged = sending.judge([11, 12, 13])
    assert judged.missed
    assert (sending.left, sending.passes, sending.drafted, sending.accepted) == (1, 1, 4, 2)
    assert [(counts.judged, counts.right) for counts in chances.counts] == [((1, 1, 1), (1, 1, 0))]
    sending.give_up()
    assert sending.flight.is_over
    assert sending.begin(ROW, []) == 0
    assert session.sent[2:] == [[13]]
