"""Arguments that are plain text, as what their schema asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.client.parsing.typed import MAX_SCHEMAS, KnownTools


def _typed(schema: Any, text: str, **beside: Any) -> Any:
    return KnownTools({"f": {"properties": {"x": schema}, **beside}}).typed("f", "x", text)


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "3", "3"),
        ({"type": "string"}, "null", "null"),
        ({"type": "integer"}, "3", 3),
        ({"type": "integer"}, " 3.0 ", 3),
        ({"type": "integer"}, "3.5", "3.5"),
        ({"type": "number"}, "3", 3),
        ({"type": "number"}, "1e400", "1e400"),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "yes", "yes"),
        ({"type": ["string", "null"]}, "None", None),
        ({"type": ["string", "integer"]}, "three", "three"),
        ({"type": "array"}, "[1, 2]", [1, 2]),
        ({"type": "object"}, '{"a": 1}', {"a": 1}),
        ({"type": "object"}, '{"a": 1', '{"a": 1'),
        ({"type": "object"}, "{'a': [True, None, \"b's\"]}", {"a": [True, None, "b's"]}),
        ({"type": "object"}, "{'a': 1} and", "{'a': 1} and"),
        ({"type": "array"}, r"['a\'b\\c\n\x41\u00f6', 1.5, inf]", r"['a\'b\\c\n\x41\u00f6', 1.5, inf]"),
        ({"type": "array"}, r"['a\'b\\c\n\x41\u00f6', -1.5]", ["a'b\\c\nAö", -1.5]),
        ({"type": "array"}, "[" * 70, "[" * 70),
        ({"type": "integer"}, "None", None),
        ({"type": "string"}, "['a']", "['a']"),
        ({}, "[draft] Hello", "[draft] Hello"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "3", 3),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": [1, 2]}, "1", 1),
        ({"const": 1}, "1", 1),
        ({"type": "integer", "nullable": True}, "null", None),
        ({"$ref": "#/$defs/n"}, "3", 3),
        ({"$ref": "#/$defs/none"}, "3", "3"),
        ({"$ref": "https://example.org"}, "3", "3"),
        ({"$ref": "#/properties/x"}, "3", "3"),
        ({}, "3", "3"),
        ({}, "[3]", [3]),
        ({}, "true", True),
        (None, "3", "3"),
        ("nonsense", "3", "3"),
        ({"anyOf": 3, "type": 4, "enum": 5}, "3", "3"),
    ],
)
def test_types(schema: Any, text: str, value: Any) -> None:
    typed = _typed(schema, text, **{"$defs": {"n": {"type": "integer"}}})
    assert (typed, type(typed)) == (value, type(value))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "anyOf", "enum", "$ref", "const", "properties", "x"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(schema=JSON, text=st.text(max_size=6) | JSON.map(json.dumps))
def test_any_schema_will_do(schema: Any, text: str) -> None:
    for tools in (KnownTools({"f": schema}), KnownTools({"f": {"properties": {"x": schema}}})):
        json.dumps(tools.typed("f", "x", text), allow_nan=False)


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 5000, "[" * 100 + "]" * 100, "-Infinity"])
def test_what_is_no_value_is_text(text: str) -> None:
    assert _typed({"type": "number"}, text) == text


class _Counted(dict[str, Any]):
    """A schema that counts how often its type is asked for."""

    looks = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.looks += key == "type"
        return super().get(key, default)


def test_schemas_that_multiply_are_looked_at_a_few_times() -> None:
    many = _Counted()
    many["anyOf"] = [{"$ref": "#/many"}] * 64
    assert _typed({"$ref": "#/many"}, "3", many=many) == "3"
    assert 0 < many.looks <= MAX_SCHEMAS
