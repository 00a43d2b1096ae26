"""Behind a replaced word a copy goes on, at the right place, and only after others did."""

from __future__ import annotations

from collections.abc import Sequence

from swarm_node.client.drafting.chances import Chances
from swarm_node.client.drafting.prompt_lookup import PromptLookup
from swarm_node.client.drafting.resume import COPY_TOKENS, GAP_TOKENS, Resume

COPIED = list(range(100, 200))


def _after(answer: Sequence[int]) -> Resume:
    lookup = PromptLookup(COPIED)
    resume = Resume(lookup)
    for token in answer:
        lookup.came((token,))
        resume.came(token)
    return resume


def _guesses(answer: Sequence[int], most: int = 3, after: Sequence[int] = ()) -> list[int]:
    return [guess.token for guess in _after(answer).guesses(after, most)]


BEGUN = COPIED[: COPY_TOKENS + 4]
NEXT = BEGUN[-1] + 1


def test_behind_a_replaced_word_it_goes_on() -> None:
    assert _guesses([*BEGUN, 7]) == [NEXT + 1, NEXT + 2, NEXT + 3]
    assert _guesses([*BEGUN, 7], after=[NEXT + 1]) == [NEXT + 2, NEXT + 3, NEXT + 4]
    assert _guesses([*BEGUN, 7], after=[5]) == []
    assert _guesses([*BEGUN, 7, 8]) == [NEXT + 2, NEXT + 3, NEXT + 4]


def test_a_word_that_is_longer_or_shorter_is_found_over_by_what_follows() -> None:
    assert _guesses([*BEGUN, 7, 8, NEXT + 1]) == [NEXT + 2, NEXT + 3, NEXT + 4]  # two for one
    assert _guesses([*BEGUN, 7, NEXT + 3]) == [NEXT + 4, NEXT + 5, NEXT + 6]  # one for three


def test_nothing_is_guessed_where_no_copy_was_interrupted() -> None:
    assert _guesses(BEGUN) == []
    assert _guesses([7, 8, 9]) == []
    assert _guesses([*COPIED[: COPY_TOKENS - 2], 7]) == []
    assert _guesses([*BEGUN, 7, *range(NEXT + 1, NEXT + 1 + COPY_TOKENS)]) == []  # the text's own again


def test_a_copy_that_is_left_is_over() -> None:
    assert _guesses([*BEGUN, *range(500, 500 + GAP_TOKENS)]) != []
    assert _guesses([*BEGUN, *range(500, 502 + GAP_TOKENS)]) == []


def test_the_end_of_the_copied_text_is_its_end() -> None:
    answer = [*COPIED[-COPY_TOKENS - 4 : -1], 7]
    guesses = _after(answer).guesses((), 9)
    assert len(guesses) <= len(answer)


def test_without_evidence_its_chance_is_nothing() -> None:
    chances = Chances()
    guesses = _after([*BEGUN, 7]).guesses((), 3)
    assert chances.along(guesses) == [0, 0, 0]
    chances.judged(guesses[0].kind, True)
    assert chances.along(guesses)[2] > 0.1
