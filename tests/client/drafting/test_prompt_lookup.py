"""Drafts from the text: what followed the longest and latest place that looks like its end."""

from __future__ import annotations

import random
from time import perf_counter

from hypothesis import given
from hypothesis import strategies as st

from swarm_node.client.drafting.draft_length import NO_DRAFT, Draft
from swarm_node.client.drafting.prompt_lookup import CANDIDATES, LONGEST_MATCH, PromptLookup


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
        lookup.extend((token,))
    assert list(lookup.draft(length).tokens) == _plain(ids, length)


def test_the_longest_match_wins_over_the_latest() -> None:
    text = [1, 2, 3, 4, 50, 9, 3, 4, 60, 8, 1, 2, 3, 4]
    assert PromptLookup(text).draft(3).tokens == (50, 9, 3)
    assert PromptLookup([3, 4, 50, 3, 4, 60, 3, 4]).draft(2).tokens == (60, 3)


def test_one_token_is_better_than_none() -> None:
    assert PromptLookup([7, 8, 9, 7]).draft(2).tokens == (8, 9)
    assert PromptLookup([7, 8, 9]).draft(4) == NO_DRAFT
    assert PromptLookup([]).draft(4) == NO_DRAFT


def test_a_text_that_repeats_itself_is_carried_on() -> None:
    assert PromptLookup([5, 1, 2, 3, 1, 2, 3]).draft(8).tokens == (1, 2, 3, 1, 2, 3, 1, 2)
    assert PromptLookup([4, 4, 4]).draft(3).tokens == (4, 4, 4)


def test_chances_grow_with_the_match_and_along_it() -> None:
    weak = PromptLookup([7, 8, 9, 7]).draft(1)
    strong = PromptLookup([*range(100, 120), 1, 2, *range(100, 120)]).draft(1)
    assert weak.kinds < strong.kinds
    assert weak.priors[0] < strong.priors[0]
    along = PromptLookup([*range(40), 0]).draft(20)
    assert list(along.priors) == sorted(along.priors)
    assert len(set(along.kinds)) > 3


def test_a_draft_ends_before_what_ends_the_answer() -> None:
    draft = Draft((1, 2, 3, 2), (("x", 0),) * 4, (0.5,) * 4)
    assert draft.before(frozenset({3})).tokens == (1, 2)
    assert draft.before(frozenset()) == draft
    assert len(draft.before(frozenset({1}))) == 0


def test_long_and_dull_texts_take_no_time() -> None:
    rng = random.Random(1)
    for ids in ([1] * 50_000, [rng.randrange(3) for _ in range(50_000)]):
        lookup = PromptLookup(ids)
        began = perf_counter()
        for _ in range(100):
            lookup.draft(32)
        assert (perf_counter() - began) / 100 < 0.005
