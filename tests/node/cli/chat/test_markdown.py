"""Markdown as it streams: what is final, what is harmless, what fits."""

from __future__ import annotations

import io
import random

import pytest
from rich.console import Console
from rich.text import Text

from swarm_node.node.cli.chat.markdown import LastLines, finished, rendered


def shown(renderable: object, *, height: int = 25, color: bool = False) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=60, height=height, force_terminal=color, color_system="truecolor" if color else None
    )
    console.print(renderable)
    return out.getvalue()


TEXT = (
    "# Title\n\nA *word*.\nNext line.\n\n1. one\n\n   more of one\n\n2. two\n\n"
    "```py\nx = 1\n\n\ny = 2\n```\n\nend"
)


def test_finished_blocks() -> None:
    assert finished("") == finished("a\nb\n") == 0
    assert finished("a\n\n") == 0, "an indented line could follow"
    assert finished("a\n\nb") == 3
    assert finished("- a\n\n  more") == 0
    assert finished("```\nx\n\ny\n") == 0, "inside a fence"
    assert finished("~~~\n```\n\nx\n~~~\n\ny") == 16
    assert finished("````\n```\n\nx\n````\n\ny") == 18


def test_what_is_finished_stays_finished() -> None:
    """However the text grows, what was cut off as final is a part of the whole's final part."""
    end = 0
    for length in range(len(TEXT) + 1):
        now = finished(TEXT[:length])
        assert now >= end
        end = now
    assert TEXT[end:] == "end"


def test_cut_anywhere_the_words_are_the_same() -> None:
    whole = shown(rendered(TEXT)).split()
    rng = random.Random(1)
    for _ in range(20):
        tail, parts = "", []
        for character in TEXT:
            tail += character
            if rng.random() < 0.3 and (end := finished(tail)):
                parts.append(shown(rendered(tail[:end])))
                tail = tail[end:]
        assert "".join([*parts, shown(rendered(tail))]).split() == whole


def test_line_breaks_and_tags_stay() -> None:
    assert shown(rendered("one\ntwo <think>x</think>")).split() == ["one", "two", "<think>x</think>"]
    assert [line.strip() for line in shown(rendered("one\ntwo")).splitlines() if line.strip()] == [
        "one",
        "two",
    ]


@pytest.mark.parametrize("code", ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\x07", "\x7f", "\r"])
def test_control_characters_never_reach_the_terminal(code: str) -> None:
    for text in (f"a{code}b", f"`a{code}b`", f"```\na{code}b\n```"):
        out = shown(rendered(text))
        assert not any(
            (ord(character) < 32 and character != "\n") or 127 <= ord(character) < 160 for character in out
        )


def test_links_show_where_they_lead() -> None:
    out = shown(rendered("[bank](https://evil.example)"), color=True)
    assert "https://evil.example" in out
    assert "\x1b]8" not in out


def test_the_last_lines_fit_the_window() -> None:
    body = Text("\n".join(f"line {number}" for number in range(100)))
    lines = shown(LastLines(body, Text("footer")), height=12).splitlines()
    assert len(lines) == 10
    assert lines[-2].strip() == "line 99"
    assert lines[-1].strip() == "footer"
