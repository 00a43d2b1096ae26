"""Tools as real clients describe them: a call that must come can be asked for with each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swarm_node.client.gateway.openai.requests import read_chat
from swarm_node.client.gateway.openai.tools import read_tools
from swarm_node.client.gateway.requests.fields import BodyFields
from swarm_node.client.guided.guide import Guide
from swarm_node.client.guided.token_guide import TRIAL, _grammar
from swarm_node.client.http.errors import ApiError

llguidance = pytest.importorskip("llguidance")

SCHEMAS: dict[str, Any] = json.loads(Path(__file__).with_name("client_schemas.json").read_text())
USER = {"role": "user", "content": "hi"}
STRICT = (
    "OpenAI Agents SDK",
    "Claude Code",
    "VS Code",
    "MCP filesystem",
    "MCP GitHub",
    "n8n",
    "Roo",
    "Continue",
)


def _problem(guide: Guide | None) -> str:
    assert guide is not None
    return str(TRIAL.ask(_grammar(llguidance, guide)))


def _forced(schema: Any, **function: Any) -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, **function}}
    return {"messages": [USER], "tools": [tool], "tool_choice": "required"}


@pytest.mark.parametrize("client", SCHEMAS)
def test_a_call_can_be_forced(client: str) -> None:
    before = json.dumps(SCHEMAS[client])
    tools = read_tools(BodyFields(_forced(SCHEMAS[client])))
    assert _problem(tools.forced) == ""
    assert tools.definitions[0]["function"]["parameters"] == SCHEMAS[client]  # the model is shown all of it
    assert json.dumps(SCHEMAS[client]) == before


def test_all_of_them_at_once() -> None:
    tools = [
        {"type": "function", "function": {"name": f"tool_{number}", "parameters": schema}}
        for number, schema in enumerate(SCHEMAS.values())
    ]
    assert _problem(read_tools(BodyFields({"tools": tools, "tool_choice": "required"})).forced) == ""


@pytest.mark.parametrize("client", STRICT)
def test_strict_ones_are_kept_to_as_they_are(client: str) -> None:
    schema = SCHEMAS[client]
    strict = read_chat(_forced(schema, strict=True)).guide
    assert strict is not None
    assert strict.weaker is None
    assert _problem(strict) == ""


@pytest.mark.parametrize("strict", [None, False, True])
def test_what_cannot_be_kept_to_is_refused_where_it_must_be(strict: bool | None) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"not": {"const": 1}}}}}
    form = {"name": "x", "schema": schema, "strict": strict}
    answered = {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": form}}
    for request, field in (
        (_forced(schema, strict=strict), "tools[0].function.parameters"),
        (answered, "response_format.json_schema.schema"),
    ):
        if not strict:
            assert _problem(read_chat(request).guide) == ""
            continue
        with pytest.raises(ApiError, match="'not' at #/properties/a/items") as caught:
            read_chat(request)
        assert caught.value.param == field


def test_arguments_are_an_object_whatever_the_tool_says() -> None:
    guide = read_chat(_forced({"description": "anything"})).guide
    assert guide is not None
    assert json.loads(guide.text)["properties"]["arguments"]["type"] == "object"


def test_what_a_compiler_cannot_take_gives_way_to_the_shape() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "a{,3}["}},
        "required": ["a"],
    }
    guide = read_chat(_forced(schema)).guide
    assert guide is not None
    assert _problem(guide) != ""
    assert _problem(guide.weaker) == ""
    assert '"required":["a"]' in guide.weaker.text
