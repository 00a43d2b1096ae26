from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.client.stopping import StopStrings
from swarm_node.swarm.errors import UsageError


def _feed(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    watcher = StopStrings(stops)
    shown = [watcher.push(piece) for piece in pieces]
    return [*shown, watcher.flush()], watcher.matched


def test_without_stop_strings_text_passes_at_once() -> None:
    assert _feed([], ["a", "b"]) == (["a", "b", ""], None)


def test_a_stop_string_cut_by_tokens_never_shows() -> None:
    assert _feed(["STOP"], ["go S", "T", "OP it", "more"]) == (["go ", "", "", "", ""], "STOP")


def test_what_only_began_like_a_stop_string_is_shown_late() -> None:
    assert _feed(["STOP"], ["go ST", "AY", " S"]) == (["go ", "STAY", " ", "S"], None)


def test_the_match_that_ends_first_counts() -> None:
    assert _feed(["abcd", "bc"], ["zabc", "d"]) == (["za", "", ""], "bc")
    assert _feed(["c", "abc"], ["ab", "c"]) == (["", "", ""], "abc")


@pytest.mark.parametrize("stops", [[""], ["ok", ""], ["x"] * 65])
def test_impossible_stop_strings(stops: list[str]) -> None:
    with pytest.raises(UsageError, match="stop string"):
        StopStrings(stops)


def _reference(stops: list[str], text: str) -> str:
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.text("abc", max_size=4), max_size=12),
)
def test_how_text_is_cut_makes_no_difference_and_nothing_leaks(stops: list[str], pieces: list[str]) -> None:
    shown, _ = _feed(stops, pieces)
    assert "".join(shown) == _reference(stops, "".join(pieces))
