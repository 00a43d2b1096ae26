"""What may be asked for, before anything is compiled."""

from __future__ import annotations

import json
from typing import Any

import pytest

from swarm_node.client.guided.guide import MAX_SOURCE, Guide, embedded_schemas
from swarm_node.client.guided.json_schema import MAX_DEPTH, MAX_VALUES, check_schema
from swarm_node.swarm.errors import UsageError

PERSON: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "https://example.org/person",
    "title": "A person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "Tell what it is", "examples": ["not"]},
        "uniqueItems": {"type": "boolean"},
        "friend": {"$ref": "#"},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/a~1tag~0"}, "maxItems": 3},
        "size": {"anyOf": [{"type": "number", "multipleOf": 0.5}, {"$ref": "#nothing"}]},
    },
    "$defs": {"a/tag~": {"enum": ["x", {"not": 1}]}, "none": {"$anchor": "nothing", "type": "null"}},
    "required": ["name"],
    "x-order": 3,
}


def test_a_schema_may_be_a_mapping_or_its_text() -> None:
    guide = Guide("json_schema", PERSON)
    assert (
        guide
        == Guide("json_schema", json.dumps(PERSON))
        == Guide("json_schema", json.dumps(PERSON, indent=1))
    )
    assert hash(guide) == hash(Guide("json_schema", PERSON))
    kept = json.loads(guide.text)
    assert list(kept["properties"]) == list(PERSON["properties"])
    assert "Tell what it is" not in guide.text
    assert list(kept) == ["type", "properties", "$defs", "required"]
    assert kept["properties"]["name"] == {"type": "string"}
    assert kept["$defs"] == PERSON["$defs"]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "uniqueItems": True}, r"'uniqueItems' at # "),
        ({"properties": {"a": {"items": {"not": {}}}}}, r"'not' at #/properties/a/items "),
        ({"anyOf": [{}, {"if": {}, "then": {}}]}, r"'if' at #/anyOf/1 "),
        ({"$defs": {"a/b": {"contains": {}}}}, r"'contains' at #/\$defs/a~1b "),
        ({"x-guidance": {"lenient": True}}, "x-guidance"),
        ({"properties": {"a": {"minLenght": 3}}}, r"'minLenght' at #/properties/a "),
        ({"items": {"type": "string", "format": "iri"}}, "the format 'iri' at #/items "),
        ({"items": {"pattern": "^(?!a)"}}, r"the pattern '\^\(\?!a\)' at #/items "),
        ({"$dynamicRef": "#a"}, "dynamicRef"),
        ({"$ref": "https://example.org/schema.json"}, "'https://example.org/schema.json', outside"),
        ({"$ref": "other.json#/a"}, "other.json#/a"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "#/properties/a of the schema refers to"),
        ({"$ref": "#/$defs/missing"}, "which is not a schema"),
        ({"$ref": "#/x-there/a", "x-there": {"a": {"not": {}}}}, "which is not a schema"),
        ({"$ref": "#nowhere"}, "which is not a schema"),
        ({"$ref": 3}, r"\$ref"),
        ({"properties": {"a": 3}}, "#/properties/a of the schema is not a schema"),
        ({"properties": []}, "properties"),
        ({"anyOf": {}}, "anyOf"),
        ({"items": 3}, "#/items"),
        ({"multipleOf": 1_000_003}, "multipleOf"),
        ({"allOf": [{"multipleOf": prime} for prime in (101, 103, 107, 109)]}, "multipleOf"),
        ({"multipleOf": 1e-12}, "multipleOf"),
        ({"allOf": [{"multipleOf": 10**9 - n} for n in range(2000)]}, "multipleOf"),
        ({"allOf": [{"multipleOf": 1.0 / (n + 3)} for n in range(1000)]}, "multipleOf"),
        ({"properties": {"n" * 30_000: {"anyOf": [{}] * 9000}}}, "names are too long"),
        ({"multipleOf": 0}, "multipleOf"),
        ({"multipleOf": True}, "multipleOf"),
    ],
)
def test_what_cannot_be_promised_is_refused_by_name(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Guide("json_schema", schema)


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (_nested(MAX_DEPTH), "deep"),
        (_nested(3000), "not JSON|deep"),
        ({"enum": [0] * MAX_VALUES}, "values"),
        ({"const": "x" * MAX_SOURCE}, "characters"),
        ('{"a":' * 10_000, "not JSON"),
        ("[" * 50_000, "not JSON"),
        (" " * (MAX_SOURCE + 1), "characters"),
        ('{"maximum": NaN}', "NaN"),
        ('{"maximum": 1e400}', "not JSON"),
        ({"maximum": float("inf")}, "not JSON"),
        ({"const": object()}, "not JSON"),
        ({"const": b"x"}, "not JSON"),
        ("{", "not JSON"),
        ("", "not JSON"),
        ("true", "schema True"),
        ([{}], "schema"),
        (None, "schema None"),
    ],
)
def test_a_schema_is_json_within_bounds(schema: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Guide("json_schema", schema)
    assert len(str(caught.value)) < 400
    assert caught.value.hint


def test_one_that_refers_to_itself_in_python_is_refused() -> None:
    schema: dict[str, Any] = {}
    schema["items"] = schema
    with pytest.raises(UsageError, match="not JSON"):
        Guide("json_schema", schema)


def test_as_deep_and_large_as_allowed() -> None:
    check_schema(_nested(MAX_DEPTH - 1))
    check_schema({"enum": [0] * (MAX_VALUES - 2)})
    check_schema({"properties": {f"p{n}": {"type": "string"} for n in range(2000)}})


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("xml", "", "kind of guide 'xml'"),
        (None, "", "kind of guide None"),
        (["regex"], "", "kind of guide"),
        ("json_object", "{}", "takes no source"),
        ("regex", "", "regex source"),
        ("regex", 3, "regex source 3"),
        ("regex", "(" * 100, "nests brackets 100 deep"),
        ("regex", ")" * 50 + "(" * 65, "65 deep"),
        ("regex", "a" * (MAX_SOURCE + 1), "characters"),
        ("regex", "\ud800", "Unicode"),
        ("lark", " \n", "lark source"),
        ("lark", "a: b\n" * 600, "lines"),
        ("lark", 'start: "a" %json {"not": {}}', "'not'"),
        ("lark", "start: %json nothing", "character 7"),
        ("lark", 'start: %json "text"', "character 7"),
        ("lark", "start: %json [1]", "character 7"),
        ("lark", "start: %json // {", "character 7"),
        ("lark", "start: %json " + '{"a":' * 20_000, "characters"),
    ],
)
def test_other_sources_are_bounded_text(kind: Any, source: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Guide(kind, source)


def test_schemas_inside_a_grammar_are_found() -> None:
    grammar = 'start: a | b\na: %json {"type": "null"}\nb: %json\n{"enum": ["%"]} "x"\n'
    found = embedded_schemas(grammar)
    assert [embedded.schema for embedded in found] == [{"type": "null"}, {"enum": ["%"]}]
    assert [json.loads(grammar[embedded.start : embedded.end]) for embedded in found] == [
        embedded.schema for embedded in found
    ]
