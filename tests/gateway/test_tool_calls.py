"""Tool calls out of text, however it is cut, and the schema of a call that must come."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.client.gateway.errors import ApiError
from swarm_node.client.gateway.fields import Fields
from swarm_node.client.gateway.tool_calls import ToolCall, ToolCallReader
from swarm_node.client.gateway.tools import Tools, read_tools
from swarm_node.client.json_schema import check_schema

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
    (f'[TOOL_CALLS][{CALL}, {{"name": "time", "arguments": {{}}}}]', "", [WEATHER, TIME]),
    (f'[{CALL}, {{"name": "rm"}}]', f'[{CALL}, {{"name": "rm"}}]', []),
    ('{"answer": 5}', '{"answer": 5}', []),
    ('{"name": "weather", "arguments": "Köln"}', '{"name": "weather", "arguments": "Köln"}', []),
    ("[1] is a note", "[1] is a note", []),
]


def _read(reader: ToolCallReader, pieces: list[str]) -> tuple[str, list[ToolCall]]:
    text, calls = "", []
    for step in (*(reader.push(piece) for piece in pieces), reader.flush()):
        text += step[0]
        calls += step[1]
    return text, calls


@pytest.mark.parametrize(("said", "text", "calls"), CASES)
def test_text_and_calls(said: str, text: str, calls: list[ToolCall]) -> None:
    assert _read(ToolCallReader(NAMES), [said]) == (text, calls)


@given(case=st.sampled_from(CASES), data=st.data())
def test_how_it_is_cut_makes_no_difference(
    case: tuple[str, str, list[ToolCall]], data: st.DataObject
) -> None:
    said, text, calls = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=8)))
    pieces = [said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)]
    assert _read(ToolCallReader(NAMES), pieces) == (text, calls)


def test_words_are_shown_as_they_come() -> None:
    reader = ToolCallReader(NAMES)
    assert [reader.push(piece)[0] for piece in ("Hello", " wor", "ld <to", "ngue>")] == [
        "Hello",
        " wor",
        "ld ",
        "<tongue>",
    ]


def test_one_call_alone_where_only_one_is_wanted() -> None:
    said = f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>"
    assert _read(ToolCallReader(NAMES, parallel=False), [said]) == ("", [WEATHER])
    assert _read(ToolCallReader(NAMES, parallel=False), [f"[{CALL},{CALL}]"]) == ("", [WEATHER])


def test_a_forced_answer_is_a_call() -> None:
    assert _read(ToolCallReader(NAMES, forced=True), [CALL]) == ("", [WEATHER])
    assert _read(ToolCallReader(NAMES, forced=True), [CALL[:-3]]) == (CALL[:-3], [])  # cut off by its length


def _tools(**choice: object) -> dict[str, object]:
    place = {"type": "object", "properties": {"near": {"$ref": "#/$defs/place"}, "whole": {"$ref": "#"}}}
    schema = {**place, "$defs": {"place": {"type": "string"}}}
    functions = [{"name": "find", "parameters": schema}, {"name": "stop"}]
    return {"tools": [{"type": "function", "function": function} for function in functions], **choice}


def test_references_inside_a_tool_still_lead_there() -> None:
    tools = read_tools(Fields(_tools(tool_choice="required")))
    assert tools.forced is not None
    check_schema(json.loads(tools.forced.text))
    assert _called(tools) == ["find", "stop"]
    assert '"$ref":"#/$defs/arguments0/$defs/place"' in tools.forced.text
    assert '"whole":{"$ref":"#/$defs/arguments0"}' in tools.forced.text


def _called(tools: Tools) -> list[str]:
    """Which tools the guide lets be called."""
    assert tools.forced is not None
    schema = json.loads(tools.forced.text)
    return [form["properties"]["name"]["const"] for form in schema.get("anyOf", [schema])]


def test_tool_choices() -> None:
    assert read_tools(Fields(_tools())).forced is None
    assert read_tools(Fields(_tools(tool_choice="auto"))).names == {"find", "stop"}
    assert not read_tools(Fields(_tools(tool_choice="none"))).definitions
    named = read_tools(Fields(_tools(tool_choice={"type": "function", "function": {"name": "stop"}})))
    assert _called(named) == ["stop"]
    with pytest.raises(ApiError, match="'go' is none of the tools: 'find', 'stop'"):
        read_tools(Fields(_tools(tool_choice={"type": "function", "function": {"name": "go"}})))


@pytest.mark.parametrize("value", ["1e999", "NaN", "-Infinity", '{"a":' * 985 + "1" + "}" * 985])
def test_arguments_that_are_no_json_are_no_call(value: str) -> None:
    reader = ToolCallReader({"f"})
    said = f'<tool_call>{{"name": "f", "arguments": {{"x": {value}}}}}</tool_call>'
    shown, calls = reader.push(said)
    for call in calls:
        json.loads(call.arguments, parse_constant=pytest.fail)
    assert calls or shown == said
