"""Calls in JSON out of text, however it is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.client.parsing.feed import Mismatch
from swarm_node.client.parsing.json_calls import calls_of
from swarm_node.client.parsing.json_text import JsonText
from swarm_node.client.parsing.pieces import ToolCall
from tests.client.parsing.parsing_case import heard, reader

NAMES = frozenset({"weather", "time"})
CALL = '{"name": "weather", "arguments": {"city": "Köln"}}'
NOW = '{"name": "time"}'
WEATHER = ToolCall("weather", '{"city": "Köln"}')
TIME = ToolCall("time", "{}")

CASES = [
    ("Just words.", "Just words.", []),
    ("", "", []),
    ("  spaced  ", "  spaced  ", []),
    (f"<tool_call>\n{CALL}\n</tool_call>", "", [WEATHER]),
    (f'\n\n<tool_call>{CALL}</tool_call>\n<tool_call>{{"name": "time"}}</tool_call>\n', "", [WEATHER, TIME]),
    (f"I look. <tool_call>{CALL}</tool_call>", "I look. ", [WEATHER]),
    (f"I look. <tool_call>{CALL}</tool_call> Done.", "I look. Done.", [WEATHER]),
    (f"<tool_call>{CALL}", "", [WEATHER]),  # the end came first
    ("<tool_call>nonsense</tool_call>", "<tool_call>nonsense</tool_call>", []),
    ('<tool_call>{"name": "rm"}</tool_call>', '<tool_call>{"name": "rm"}</tool_call>', []),
    ("a <tool b", "a <tool b", []),
    ("<tool_call", "<tool_call", []),
    (CALL, "", [WEATHER]),
    (f"\n{CALL}\n", "", [WEATHER]),
    ('{"name": "weather", "parameters": {"city": "Köln"}}', "", [WEATHER]),
    (f'[{CALL}, {{"name": "time", "arguments": {{}}}}]', "", [WEATHER, TIME]),
    (f"{CALL}; {NOW}", "", [WEATHER, TIME]),
    (f"{CALL}\n{NOW}", "", [WEATHER, TIME]),
    ('{"name": "weather", "arguments": "{\\"city\\": \\"Köln\\"}"}', "", [WEATHER]),
    ('{"tool_call_id": "0", "tool_name": "time", "parameters": {}}', "", [TIME]),
    ("[weather(city='Köln'), time()]", "", [WEATHER, TIME]),
    ("[weather(city='Köln')] is it", "[weather(city='Köln')] is it", []),
    ("[weather(city=Köln)]", "[weather(city=Köln)]", []),
    ("[weather(3)]", "[weather(3)]", []),
    (r"[weather(city='\ud83d\ude00 \ud800')]", "", [ToolCall("weather", '{"city": "😀 \ufffd"}')]),
    (
        r'{"name": "weather", "arguments": {"city": "\ud800"}}',
        "",
        [ToolCall("weather", '{"city": "\ufffd"}')],
    ),
    ("time\n{}", "time\n{}", []),
    (f"<tool_call>{CALL}</tool_ca", "", [WEATHER]),
    (f'[{CALL}, {{"name": "rm"}}]', f'[{CALL}, {{"name": "rm"}}]', []),
    ('{"answer": 5}', '{"answer": 5}', []),
    ('{"name": "weather", "arguments": "Köln"}', '{"name": "weather", "arguments": "Köln"}', []),
    ("[1] is a note", "[1] is a note", []),
]


def _read(pieces: list[str], **options: Any) -> tuple[str, list[ToolCall]]:
    found = heard(reader(**{"names": NAMES, **options}), pieces)
    return found.text, found.calls


@pytest.mark.parametrize(("said", "text", "calls"), CASES)
def test_text_and_calls(said: str, text: str, calls: list[ToolCall]) -> None:
    assert _read([said]) == (text, calls)


@given(case=st.sampled_from(CASES), data=st.data())
def test_how_it_is_cut_makes_no_difference(
    case: tuple[str, str, list[ToolCall]], data: st.DataObject
) -> None:
    said, text, calls = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=8)))
    pieces = [said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)]
    assert _read(pieces) == (text, calls)


def _pieces(said: str) -> list[str]:
    """What is shown, character by character."""
    reading = reader(names=NAMES)
    return [heard(reading, [character], flush=False).text for character in said]


@pytest.mark.parametrize(
    ("said", "held"),
    [
        ("[1] is a note", "["),
        ('{"answer": 5}', '{"a'),  # of "arguments"
        ('{"name": "Bob", "age": 3}', '{"name": "'),
        ('{"name": "weather", "arguments": "Köln"}', '{"name": "weather", "arguments": "'),
        ('{"name": "weather", "arguments": 3}', '{"name": "weather", "arguments": '),
        ("[weather] is", "[weather"),
        ('{"name": "weather", "arguments": {}, "x": 1}', '{"name": "weather", "arguments": {}, "'),
        ('{"name": "weather"} is a call', '{"name": "weather"} '),
        ("[TOOL_CALLS]weather[ARGS]{}", "["),
        ('{"name": "weather"}; so', '{"name": "weather"}; '),
        ('[{"title": "a"}]', '[{"t'),
        ("[[1]]", "["),
        ("[]", "["),
        ("{}", "{"),
        ("{'name': 1}", "{"),
        ("<tool_call>\n<function=weather>", "<tool_call>\n<"),
        ('<tool_call>{"name": "rm"}</tool_call>', '<tool_call>{"name": "'),
        ('<tool_call>{"name": "time"} or so', '<tool_call>{"name": "time"} '),
        ("Write <tool_call> before it.", "Write <tool_call> "),
        ("  words", "  "),
    ],
)
def test_what_cannot_be_a_call_any_more_is_shown_at_once(said: str, held: str) -> None:
    pieces = _pieces(said)
    begun = held.rfind("<")
    assert "".join(pieces[: len(held)]) == held[: max(begun, 0)]
    assert "".join(pieces[: len(held) + 1]) == said[: len(held) + 1]
    assert "".join(pieces) == said


def test_a_closing_tag_in_an_argument_is_part_of_it() -> None:
    said = '<tool_call>{"name": "weather", "arguments": {"city": "</tool_call>"}}</tool_call>'
    assert _read(list(said)) == ("", [ToolCall("weather", '{"city": "</tool_call>"}')])


def test_a_call_after_what_only_looked_like_one() -> None:
    said = f"[1] <tool_call> <tool_call>{CALL}</tool_call> \n{NOW} or  so "
    assert _read(list(said)) == (f"[1] <tool_call> {NOW} or  so ", [WEATHER])


ARGUMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)
CALLS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["weather", "time", "tim", "rm", "wéather", 3]),
        "arguments": ARGUMENTS | st.dictionaries(st.text(max_size=2), ARGUMENTS, max_size=3),
        "parameters": ARGUMENTS | st.just({}),
        "type": st.just("function"),
        "id": ARGUMENTS,
        "x": st.just(1),
    },
)


@pytest.mark.slow
@settings(max_examples=400)
@given(
    value=CALLS | st.lists(CALLS, max_size=3) | ARGUMENTS,
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    place=st.integers(0, 400),
    change=st.sampled_from(["", "", " ", '"', "}", "]", "1", "x", "\\", "-", "e", ".", "\u00e9", "\n", ","]),
)
def test_what_is_told_early_is_what_the_whole_text_is(
    value: Any, indent: int | None, ascii_only: bool, place: int, change: str
) -> None:
    said = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    place %= len(said) + 1
    said = said[:place] + change + said[place:]
    try:
        expected = calls_of(said.strip(), NAMES)
    except Mismatch:
        expected = []
    text = JsonText("calls", NAMES)
    alive = all(map(text.push, said.lstrip()))
    assert (alive and text.is_complete) == bool(expected)
    whole = _read(list(said))
    assert whole == (("", expected) if expected else (said, []))
    tagged = _read(list(f"<tool_call>{said}</tool_call>"))
    assert tagged == (("", expected) if expected else (f"<tool_call>{said}</tool_call>", []))


def test_words_are_shown_as_they_come() -> None:
    reading = reader(names=NAMES)
    pieces = ("Hello", " wor", "ld <to", "ngue>")
    assert [heard(reading, [piece], flush=False).text for piece in pieces] == [
        "Hello",
        " wor",
        "ld ",
        "<tongue>",
    ]


def test_one_call_alone_where_only_one_is_wanted() -> None:
    said = f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>"
    assert _read([said], parallel=False) == ("", [WEATHER])
    assert _read([f"[{CALL},{CALL}]"], parallel=False) == ("", [WEATHER])


def test_a_forced_answer_is_a_call() -> None:
    assert _read([CALL], forced=True) == ("", [WEATHER])
    assert _read([CALL[:-3]], forced=True) == (CALL[:-3], [])  # cut off by its length


@pytest.mark.parametrize("value", ["1e999", "NaN", "-Infinity", '{"a":' * 985 + "1" + "}" * 985])
def test_arguments_that_are_no_json_are_no_call(value: str) -> None:
    said = f'<tool_call>{{"name": "f", "arguments": {{"x": {value}}}}}</tool_call>'
    shown, calls = _read([said], names={"f"})
    for call in calls:
        json.loads(call.arguments, parse_constant=pytest.fail)
    assert calls or shown == said
