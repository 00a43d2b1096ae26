from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.client.decoding.stopping import StopStrings
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


def _feed_with_tokens(stops: list[str], text: str) -> tuple[str, str | None]:
    """``text`` with control tokens in angle brackets, character by character but for those."""
    watcher = StopStrings(stops)
    shown = ""
    for piece in re.findall("<[^>]*>|.", text, re.DOTALL):
        shown += watcher.push(piece, hidden=piece[0] == "<")
    return shown + watcher.flush(), watcher.matched


@pytest.mark.parametrize(
    ("stops", "text", "shown", "matched"),
    [
        (["<end>"], "abc<end>d", "abc", "<end>"),
        (["<end>"], "abc<other>d", "abcd", None),
        (["x"], "ab<end>cx", "abc", "x"),
        (["c<end>\nU"], "abc<end>\nUd", "ab", "c<end>\nU"),
        (["c<end>\nU"], "abc<end>\nVd", "abc\nVd", None),
        (["cd"], "abc<end>de", "ab", "cd"),  # shown side by side
        (["end>"], "ab<end>c", "ab", "end>"),
        (["<a><b>"], "1<a><b>2", "1", "<a><b>"),
        (["<a><b>", "23"], "1<a>2<c>3", "1", "23"),
        (["zz"], "<a>z<b>", "z", None),
    ],
)
def test_control_tokens_end_a_text_and_are_not_shown(
    stops: list[str], text: str, shown: str, matched: str | None
) -> None:
    assert _feed_with_tokens(stops, text) == (shown, matched)


TOKENS = st.lists(st.sampled_from(["a", "b", "<a>", "<ab>"]), max_size=12).map("".join)


@given(
    stops=st.lists(st.sampled_from(["a", "ab", "<a>", "b<a>", "<a>b", "bb", "a>", "<ab><a>"]), max_size=3),
    text=TOKENS,
)
def test_nothing_is_lost_and_no_stop_string_is_passed(stops: list[str], text: str) -> None:
    shown, matched = _feed_with_tokens(stops, text)
    visible = re.sub("<[^>]*>", "", text)
    assert not any(stop in shown for stop in stops)
    if matched is None:
        assert shown == visible
        assert not any(stop in text for stop in stops)
    else:
        assert visible.startswith(shown)
        assert matched in text or matched in visible
