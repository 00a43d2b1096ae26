"""Plain forms of schemas: they say the same, and lenient ones never more."""

from __future__ import annotations

import contextlib
import json
from time import process_time
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.client.guided.json_schema import MAX_DEPTH, check_schema
from swarm_node.client.guided.schema_forms import ANNOTATIONS, plain, shape
from swarm_node.swarm.errors import UsageError

FORMS: list[tuple[object, object]] = [
    ({"$schema": "x", "$id": "y", "items": {"markdownDescription": "m", "x-a": 1}}, {"items": {}}),
    ({"properties": {"title": {"title": "t"}, "$id": {}}}, {"properties": {"title": {}, "$id": {}}}),
    ({"enum": [{"title": "t"}], "default": {"title": "t"}}, {"enum": [{"title": "t"}]}),
    ({"uniqueItems": False, "unevaluatedProperties": True, "if": {}}, {}),
    ({"required": None, "const": None, "items": None}, {"const": None}),
    ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
    ({"type": "string", "nullable": False}, {"type": "string"}),
    ({"enum": ["a"], "nullable": True}, {"enum": ["a", None]}),
    ({"const": "a", "nullable": True}, {"enum": ["a", None]}),
    ({"anyOf": [{}], "nullable": True}, {"anyOf": [{}, {"type": "null"}]}),
    (
        {"$ref": "#/$defs/a", "nullable": True, "$defs": {"a": {}}},
        {"$defs": {"a": {}}, "anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]},
    ),
    ({"minimum": 1, "exclusiveMinimum": True}, {"exclusiveMinimum": 1}),
    ({"maximum": 1, "exclusiveMaximum": False}, {"maximum": 1}),
    ({"type": "integer", "format": "int32"}, {"type": "integer"}),
    ({"type": "string", "format": "binary"}, {"type": "string"}),
    ({"format": "cuid2", "pattern": "^[0-9a-z]+$"}, {"pattern": "^[0-9a-z]+$"}),
    ({"type": "string", "format": "uuid"}, {"type": "string", "format": "uuid"}),
    ({"propertyNames": {"type": "string", "title": "t"}}, {}),
    (
        {"propertyNames": {"enum": ["a"]}, "additionalProperties": {"type": "null"}},
        {"properties": {"a": {"type": "null"}}, "additionalProperties": False},
    ),
    (
        {"propertyNames": {"pattern": "^a"}},
        {"patternProperties": {"^a": True}, "additionalProperties": False},
    ),
    ({"$id": "Node", "items": {"$ref": "Node"}}, {"items": {"$ref": "#"}}),
]
TAGGED: dict[str, Any] = {
    "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
    "$defs": {
        "cat": {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]},
        "dog": {"type": "object", "properties": {"kind": {"enum": ["dog", "wolf"]}}, "required": ["kind"]},
    },
}


def test_forms_that_a_property_tells_apart_are_any_of_them() -> None:
    assert plain(TAGGED) == {"anyOf": TAGGED["oneOf"], "$defs": TAGGED["$defs"]}
    for name, change in (
        ("cat", {"required": []}),
        ("cat", {"type": ["object", "null"]}),
        ("dog", {"properties": {"kind": {"enum": ["dog", "cat"]}}}),
        ("dog", {"properties": {"sort": {"const": "dog"}}}),
        ("dog", {"nullable": True}),
    ):
        definitions = {**TAGGED["$defs"], name: {**TAGGED["$defs"][name], **change}}
        assert "oneOf" in plain({**TAGGED, "$defs": definitions})
    loop = {"oneOf": [{"$ref": "#"}, {"$ref": "#/$defs/none"}, {"$ref": 3}]}
    assert plain(loop) == loop


LENIENT: list[tuple[object, object]] = [
    ({"not": {}, "uniqueItems": True, "surprise": 1, "x-guidance": {}}, {}),
    ({"pattern": "^(?=a)", "format": "iri", "maxLength": 3}, {"maxLength": 3}),
    ({"type": "STRING"}, {"type": "string"}),
    ({"type": "any"}, {}),
    ({"type": ["str", "null"]}, {"type": "null"}),
    ({"oneOf": [{"type": "null"}]}, {"anyOf": [{"type": "null"}]}),
    ({"properties": {"a": {"$ref": "#/components/A"}, "b": 3}}, {"properties": {"a": {}, "b": {}}}),
    ({"required": True, "properties": [], "minLength": "3", "anyOf": []}, {}),
    ({"items": {"multipleOf": 1_000_003}}, {"items": {}}),
]


@pytest.mark.parametrize(("schema", "form"), FORMS)
def test_plain_forms(schema: object, form: object) -> None:
    assert plain(schema) == form
    assert plain(plain(schema)) == form
    check_schema(form)


@pytest.mark.parametrize(("schema", "form"), LENIENT)
def test_lenient_forms(schema: object, form: object) -> None:
    assert plain(schema, lenient=True) == form
    check_schema(form)


def test_what_is_known_to_describe_is_never_refused() -> None:
    check_schema(plain({"items": dict.fromkeys(ANNOTATIONS, "x")}))


@pytest.mark.parametrize("pattern", [r"(?=a)", r"a(?!b)", r"(?<=a)b", r"(?<!a)b", r"\bx", r"(a)\1", r"(?>a)"])
def test_patterns_that_look_around_or_back_are_refused_by_place(pattern: str) -> None:
    with pytest.raises(UsageError, match=r"at #/properties/a of the schema looks"):
        check_schema({"properties": {"a": {"pattern": pattern}}})


@pytest.mark.parametrize(
    "pattern", [r"[(?=]", r"\(\?=", r"\\b", r"(?:a|b)", r"(?<name>a)", r"(?i)a", r"[\b]"]
)
def test_patterns_that_only_look_like_it_are_fine(pattern: str) -> None:
    check_schema({"pattern": pattern})


def test_nesting_is_bounded_before_anything_recurs() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"not": deep}
    for lenient in (False, True):
        with pytest.raises(UsageError, match=f"more than {MAX_DEPTH} deep"):
            plain(deep, lenient=lenient)
    while deep:  # by hand: the interpreter would free it by recursion
        deep = deep["not"]


LEAVES = st.sampled_from(
    [
        *(
            {"type": "string"},
            {"type": "integer", "format": "int64"},
            {"const": "a"},
            {"enum": ["a", 1, None]},
        ),
        *({"maxLength": 1}, {"minimum": 1}, {"multipleOf": 2}, True, False, {}, {"type": ["string", "null"]}),
        *({"type": "array", "uniqueItems": True}, {"not": {"type": "string"}}, {"pattern": "^(?!b)"}),
        *({"required": ["a"]}, {"propertyNames": {"enum": ["a"]}}, {"contains": {"const": 1}}),
        *({"uniqueItems": False, "title": "t"}, {"dependentRequired": {"a": ["b"]}}, {"maxProperties": 1}),
        *({"type": "object", "properties": {"a": {"const": each}}, "required": ["a"]} for each in "ab"),
        *({"$ref": "#/$defs/d"}, {"if": {"type": "string"}, "then": {"const": "a"}}, {"minItems": 1}),
    ]
)


def _schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    many = st.lists(inner, min_size=1, max_size=2)
    return st.fixed_dictionaries(
        {},
        optional={
            "items": inner,
            "anyOf": many,
            "allOf": many,
            "oneOf": many,
            "prefixItems": many,
            "properties": st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
            "additionalProperties": inner,
            "patternProperties": st.dictionaries(st.sampled_from(["^a", "b"]), inner, max_size=1),
            "propertyNames": st.sampled_from([{"enum": ["a"]}, {"pattern": "^a"}, {"minLength": 2}, True]),
            "title": st.just("t"),
        },
    )


SCHEMAS = st.recursive(LEAVES, _schemas, max_leaves=5)
VALUES = st.recursive(
    st.sampled_from([None, True, 0, 1, 2, "a", "b", "ab"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.slow
@settings(max_examples=300)
@given(schema=SCHEMAS, definition=LEAVES, values=st.lists(VALUES, min_size=1, max_size=8))
def test_forms_say_the_same_and_lenient_ones_no_more(schema: Any, definition: Any, values: list[Any]) -> None:
    if not isinstance(schema, dict) or definition == {"$ref": "#/$defs/d"}:
        return
    schema = {**schema, "$defs": {"d": definition}}
    kept = json.dumps(schema)
    valid = jsonschema.Draft202012Validator(schema).is_valid
    same = jsonschema.Draft202012Validator(plain(schema)).is_valid
    lenient = plain(schema, lenient=True)
    check_schema(lenient)
    wider = [jsonschema.Draft202012Validator(form).is_valid for form in (lenient, shape(lenient))]
    for value in values:
        assert same(value) == valid(value)
        assert not valid(value) or all(allows(value) for allows in wider)
    assert json.dumps(schema) == kept


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"n" * 30_000: {"anyOf": [{}] * 9000}}},
        {
            "oneOf": [{"$ref": "#/$defs/a"}] * 9000,
            "$defs": {"a": {"type": "object", "required": ["x"] * 100_000}},
        },
        {"items": [{"oneOf": [{"$ref": "#/$defs/a"}] * 60}] * 500, "$defs": {"a": {"enum": ["x"] * 100_000}}},
        {"enum": ["x" * 100] * 10_000, "title": "t" * 1_000_000},
    ],
)
@pytest.mark.parametrize("lenient", [False, True])
def test_hostile_schemas_take_no_time(schema: Any, lenient: bool) -> None:
    began = process_time()
    with contextlib.suppress(UsageError):
        plain(schema, lenient=lenient)
    assert process_time() - began < 1.5


def test_nested_names_of_properties_are_read_once() -> None:
    nested: dict[str, Any] = {"minLength": 1}
    for _ in range(50):
        nested = {"propertyNames": nested}
    assert plain(nested) == nested
