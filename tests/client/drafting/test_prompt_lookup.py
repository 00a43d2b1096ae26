"""Drafts from the text: what followed the longest and latest place that looks like its end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from time import process_time

from hypothesis import given
from hypothesis import strategies as st

from swarm_node.client.drafting.prompt_lookup import CANDIDATES, LONGEST_MATCH, PromptLookup


def _tokens(lookup: PromptLookup, length: int, after: Sequence[int] = ()) -> list[int]:
    return [guess.token for guess in lookup.guesses(after, length)]


def _plain(ids: list[int], length: int) -> list[int]:
    """The same, without an index."""
    end, best, longest = len(ids), 0, 0
    seen = 0
    for place in range(end - 1, 0, -1):
        matched = 0
        while matched < min(place, LONGEST_MATCH) and ids[place - 1 - matched] == ids[end - 1 - matched]:
            matched += 1
        if matched >= 2:
            seen += 1
            if seen > CANDIDATES:
                break
        if matched > longest:
            best, longest = place, matched
    text = list(ids)
    for number in range(length if longest else 0):
        text.append(text[best + number])
    return text[end:]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 12), st.integers(0, 60))
def test_an_index_that_grows_finds_what_a_search_finds(ids: list[int], length: int, cut: int) -> None:
    lookup = PromptLookup(ids[:cut])
    for token in ids[cut:]:
        lookup.came((token,))
    assert _tokens(lookup, length) == _plain(ids, length)


def test_the_longest_match_wins_over_the_latest() -> None:
    text = [1, 2, 3, 4, 50, 9, 3, 4, 60, 8, 1, 2, 3, 4]
    assert _tokens(PromptLookup(text), 3) == [50, 9, 3]
    assert _tokens(PromptLookup([3, 4, 50, 3, 4, 60, 3, 4]), 2) == [60, 3]


def test_one_token_is_better_than_none() -> None:
    assert _tokens(PromptLookup([7, 8, 9, 7]), 2) == [8, 9]
    assert PromptLookup([7, 8, 9]).guesses((), 4) == []
    assert PromptLookup([]).guesses((), 4) == []


def test_a_text_that_repeats_itself_is_carried_on() -> None:
    assert _tokens(PromptLookup([5, 1, 2, 3, 1, 2, 3]), 8) == [1, 2, 3, 1, 2, 3, 1, 2]
    assert _tokens(PromptLookup([4, 4, 4]), 3) == [4, 4, 4]


def test_chances_grow_with_the_match_and_along_it() -> None:
    (weak,) = PromptLookup([7, 8, 9, 7]).guesses((), 1)
    (strong,) = PromptLookup([*range(100, 120), 1, 2, *range(100, 120)]).guesses((), 1)
    assert weak.kind < strong.kind
    assert weak.chance < strong.chance
    along = PromptLookup([*range(40), 0]).guesses((), 20)
    chances = [guess.chance for guess in along]
    assert chances == sorted(chances)
    assert len({guess.kind for guess in along}) > 3


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 20))
def test_behind_its_own_guesses_it_goes_on_as_before(ids: list[int], cut: int) -> None:
    lookup = PromptLookup(ids)
    guesses = lookup.guesses((), 40)
    after = [guess.token for guess in guesses[:cut]]
    behind = lookup.guesses(after, 5)
    if guesses:
        assert len(behind) == 5
        longer = PromptLookup([*ids, *after])
        assert lookup.match(after)[1] <= longer.match()[1]  # which also finds the guesses themselves


def test_long_and_dull_texts_take_no_time() -> None:
    rng = random.Random(1)
    for ids in ([1] * 50_000, [rng.randrange(3) for _ in range(50_000)]):
        lookup = PromptLookup(ids)
        began = process_time()
        for _ in range(100):
            lookup.guesses((), 32)
        assert (process_time() - began) / 100 < 0.005
