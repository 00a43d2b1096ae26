"""Tools of a request, and what ``tool_choice`` makes of them."""

from __future__ import annotations

import json

import pytest

from swarm_node.client.gateway.openai.tools import read_tools
from swarm_node.client.gateway.requests.fields import BodyFields
from swarm_node.client.gateway.requests.tools import Tools
from swarm_node.client.guided.json_schema import check_schema
from swarm_node.client.http.errors import ApiError


def _tools(**choice: object) -> dict[str, object]:
    place = {"type": "object", "properties": {"near": {"$ref": "#/$defs/place"}, "whole": {"$ref": "#"}}}
    schema = {**place, "$defs": {"place": {"type": "string"}}}
    functions = [{"name": "find", "parameters": schema}, {"name": "stop"}]
    return {"tools": [{"type": "function", "function": function} for function in functions], **choice}


def test_references_inside_a_tool_still_lead_there() -> None:
    tools = read_tools(BodyFields(_tools(tool_choice="required")))
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
    assert read_tools(BodyFields(_tools())).forced is None
    assert read_tools(BodyFields(_tools(tool_choice="auto"))).names == {"find", "stop"}
    assert not read_tools(BodyFields(_tools(tool_choice="none"))).definitions
    named = read_tools(BodyFields(_tools(tool_choice={"type": "function", "function": {"name": "stop"}})))
    assert _called(named) == ["stop"]
    with pytest.raises(ApiError, match="'go' is not one of the tools: 'find', 'stop'"):
        read_tools(BodyFields(_tools(tool_choice={"type": "function", "function": {"name": "go"}})))
