"""JSON schemas as clients write them, in the forms that answers can be held to.

What describes, such as ``title`` or ``markdownDescription``, says nothing of the answer and goes. What says
nothing by its value, such as ``uniqueItems: false``, goes too. Forms of OpenAPI and of older drafts become
today's. A lenient reading also leaves out what no grammar can promise: the answer still is JSON of its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any
from urllib.parse import quote, unquote

from ...swarm.errors import UsageError
from .json_schema import (
    ENFORCED,
    FORMATS,
    MANY,
    NAMED,
    ONE,
    check_depth,
    check_multiples,
    exact,
    is_possible_multiple,
    is_possible_pattern,
    listed,
    refers_to,
    walk,
)

ANNOTATIONS = frozenset(
    ("$schema", "$id", "id", "$comment", "$vocabulary", "title", "description", "default", "example")
    + ("examples", "deprecated", "readOnly", "writeOnly", "contentMediaType", "contentEncoding")
    + ("contentSchema", "discriminator", "xml", "externalDocs", "propertyOrdering", "propertyOrder")
    + ("enumNames", "enumTitles", "enumDescriptions", "markdownDescription", "markdownEnumDescriptions")
    + ("defaultSnippets", "doNotSuggest", "suggestSortText", "deprecationMessage", "errorMessage")
    + ("markdownDeprecationMessage", "patternErrorMessage", "allowComments", "allowTrailingCommas", "tsType")
)
"""Keywords that constrain nothing: of JSON Schema, OpenAPI, Gemini, and the editors."""
_HINTS = frozenset(("binary", "byte", "password", "char", "decimal", "int32", "int64", "float", "double"))
"""Formats of OpenAPI, which say how a value is kept and not how it is written."""
_UNPROMISED = frozenset(
    ("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames")
    + ("dependencies", "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties")
)
_MAX_FORMS = 64
"""That are told apart, properties of each that may do it, and values of those."""
_MAX_REFERENCES = 8
"""References are followed at most this many times from one to the next."""
_ANYTHING: tuple[object, ...] = (True, {})
_SHAPE = frozenset(("$ref", "$anchor", "type", "const", "enum", "required")) | NAMED | MANY | ONE
_TYPES = frozenset(("object", "array", "string", "integer", "number", "boolean", "null"))


def plain(schema: Any, *, lenient: bool = False) -> Any:
    """The schema without keywords that have no effect. A value that is not a schema stays as it is, to be
    refused by name; if ``lenient``, it goes, together with what cannot be promised. Raises UsageError for one
    too deep."""
    check_depth(schema)
    cleaned = _Cleaner(schema, lenient).cleaned(schema)
    return _with_living_references(cleaned) if lenient else cleaned


def shape(schema: Any) -> Any:
    """What is left of a plain schema without bounds and patterns, of which grammars can become too large."""

    def shaped(inner: dict[str, Any]) -> dict[str, Any]:
        gone = {"patternProperties", "additionalProperties"} if "patternProperties" in inner else set()
        return {key: value for key, value in inner.items() if key in _SHAPE - gone}

    return _with_living_references(_mapped(schema, shaped))


class _Cleaner:
    """``root``: the whole schema, to which references in it lead."""

    def __init__(self, root: object, lenient: bool) -> None:
        self._root = root
        self._ids = _ids(root)  # places of the schemas that references may call by a name of their own
        self._lenient = lenient

    def cleaned(self, schema: object) -> object:
        if not isinstance(schema, dict):
            return schema if isinstance(schema, bool) or not self._lenient else {}
        found: dict[str, Any] = {}
        for key, value in schema.items():
            if self._stays(schema, key, value):
                found[key] = self._value(key, value)
        if "nullable" in found:
            found = _nullable(found)
        if isinstance(found.get("exclusiveMinimum"), bool) or isinstance(found.get("exclusiveMaximum"), bool):
            _exclusive(found)
        if "propertyNames" in found:
            found = _named_properties(found)
        if self._lenient:
            found.pop("propertyNames", None)
        forms = found.get("oneOf")
        if isinstance(forms, list) and "anyOf" not in found and (self._lenient or self._are_apart(forms)):
            found = {"anyOf" if key == "oneOf" else key: value for key, value in found.items()}
        return found

    def _are_apart(self, forms: list[Any]) -> bool:
        """Whether they are objects of which each names another value for the same property: no value fits
        two."""
        if len(forms) > _MAX_FORMS:
            return False
        tags = [_tags(self._referred(form)) for form in forms]
        for name in frozenset.intersection(*(frozenset(each) for each in tags)) if tags else ():
            values = [value for each in tags for value in each[name]]
            if len(set(values)) == len(values):
                return True
        return False

    def _referred(self, schema: object) -> object:
        """Where a schema that only refers to another leads."""
        for _ in range(_MAX_REFERENCES):
            if not isinstance(schema, dict) or "$ref" not in schema:
                return schema
            schema = _at(self._root, schema["$ref"])
        return None

    def _stays(self, schema: Mapping[str, Any], key: str, value: object) -> bool:
        if key in ANNOTATIONS or (key.startswith("x-") and key != "x-guidance"):
            return False
        if value is None and key != "const":
            return False  # what serializers write for a field that is not set
        if key == "format" and isinstance(value, str) and value not in FORMATS:
            of_text = "string" in listed(schema.get("type", "string"))
            said = "pattern" in schema or value in _HINTS  # by the pattern that goes with it; or nowhere
            return of_text and not said and not self._lenient
        if key in _UNPROMISED and self._says_nothing(schema, key, value):
            return False
        return not self._lenient or _is_usable(key, value)

    def _says_nothing(self, schema: Mapping[str, Any], key: str, value: object) -> bool:
        match key:
            case "uniqueItems" | "not":
                return value is False
            case "unevaluatedItems" | "unevaluatedProperties":
                return value in _ANYTHING
            case "propertyNames":
                said = value.items() if isinstance(value, dict) else ()
                kept = {name: inner for name, inner in said if name not in ANNOTATIONS}
                return value is True or (isinstance(value, dict) and kept in ({}, {"type": "string"}))
            case "dependencies" | "dependentRequired" | "dependentSchemas":
                return value == {}
            case "if":
                return "then" not in schema and "else" not in schema
            case "then" | "else":
                return "if" not in schema
            case "minContains" | "maxContains":
                return "contains" not in schema
        return key == "contains" and schema.get("minContains") == 0 and "maxContains" not in schema

    def _value(self, key: str, value: Any) -> Any:
        if key == "$ref" and isinstance(value, str):
            return "#" + quote(self._ids[value]) if value in self._ids else value
        if key == "type" and self._lenient:
            known = [name for name in map(str.lower, listed(value)) if name in _TYPES]
            return known[0] if len(known) == 1 else known
        if key == "required" and self._lenient:
            return [name for name in value if isinstance(name, str)]
        return _below(key, value, self.cleaned)


def _at(root: object, reference: object) -> object:
    """What a JSON pointer leads to in the schema; None for nothing."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return root if reference == "#" else None
    for part in unquote(reference[2:]).split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        root = root.get(key) if isinstance(root, dict) else None
    return root


def _tags(schema: object) -> dict[str, list[str]]:
    """For a schema of objects: the texts that a required property may have."""
    if not isinstance(schema, dict) or schema.get("type") != "object" or schema.get("nullable"):
        return {}
    properties, required = schema.get("properties"), schema.get("required")
    found: dict[str, list[str]] = {}
    if not isinstance(required, list) or not isinstance(properties, dict):
        return {}
    for name in required[:_MAX_FORMS]:
        inner = properties.get(name) if isinstance(name, str) else None
        if isinstance(inner, dict) and not inner.get("nullable"):
            values = [inner["const"]] if "const" in inner else inner.get("enum")
            if (
                isinstance(values, list)
                and len(values) <= _MAX_FORMS
                and all(isinstance(value, str) for value in values)
            ):
                found[name] = values
    return found


def _below(key: str, value: Any, change: Callable[[object], object]) -> Any:
    """The value of a keyword, with the schemas in it changed."""
    if key in NAMED and isinstance(value, dict):
        return {name: change(inner) for name, inner in value.items()}
    if key in MANY and isinstance(value, list):
        return [change(inner) for inner in value]
    return change(value) if key in ONE or key == "propertyNames" else value


def _mapped(schema: object, change: Callable[[dict[str, Any]], dict[str, Any]]) -> object:
    """The schema, with ``change`` made to each schema in it before those below."""
    if not isinstance(schema, dict):
        return schema
    return {
        key: _below(key, value, lambda inner: _mapped(inner, change)) for key, value in change(schema).items()
    }


def _is_usable(key: str, value: object) -> bool:
    """Whether a keyword can be promised, and has a value that it may have."""
    match key:
        case "nullable":
            return isinstance(value, bool)
        case "enum":
            return isinstance(value, list) and bool(value)
        case "required":
            return isinstance(value, list)
        case "type":
            return any(isinstance(name, str) and name.lower() in _TYPES for name in listed(value))
        case "pattern":
            return isinstance(value, str) and is_possible_pattern(value)
        case "format" | "$ref" | "$anchor":
            return isinstance(value, str)
        case "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties":
            return isinstance(value, int) and not isinstance(value, bool) and value >= 0
        case "minimum" | "maximum":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "multipleOf":
            return is_possible_multiple(value)
        case "exclusiveMinimum" | "exclusiveMaximum":
            return isinstance(value, int | float)
        case "items":
            return isinstance(value, dict | list | bool)
        case "propertyNames":
            return isinstance(value, dict)
    if key in NAMED:
        return isinstance(value, dict)
    if key in MANY:
        return isinstance(value, list) and bool(value)
    return key in ENFORCED or key in ONE


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """As OpenAPI 3.0 means it: what the rest says, or null."""
    found = {key: value for key, value in schema.items() if key != "nullable"}
    if schema["nullable"] is not True:
        return found if schema["nullable"] is False else schema
    for key in ("anyOf", "oneOf"):
        if isinstance(found.get(key), list):
            null = {"type": "null"}
            return {**found, key: found[key] if null in found[key] else [*found[key], null]}
    if "$ref" in found or "allOf" in found:
        named: dict[str, Any] = {key: found.pop(key) for key in ("$defs", "definitions") if key in found}
        return {**named, "anyOf": [found, {"type": "null"}]}
    if "type" in found and "null" not in listed(found["type"]):
        found["type"] = [*listed(found["type"]), "null"]
    if isinstance(found.get("enum"), list) and None not in found["enum"]:
        found["enum"] = [*found["enum"], None]
    if "const" in found and found["const"] is not None:
        found = {"enum" if key == "const" else key: value for key, value in found.items()}
        found["enum"] = [schema["const"], None]
    return found


def _exclusive(schema: dict[str, Any]) -> None:
    """Draft 4 says by a flag that a bound is not part of the range."""
    for flag, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(flag), bool):
            exclusive = schema.pop(flag)
            if exclusive and bound in schema:
                schema[flag] = schema.pop(bound)


def _named_properties(schema: dict[str, Any]) -> dict[str, Any]:
    """``propertyNames`` that lists the names, or gives their pattern, said by what the names hold."""
    names = schema["propertyNames"]
    if not isinstance(names, dict) or {"properties", "patternProperties"} & schema.keys():
        return schema
    held = schema.get("additionalProperties", True)
    found = {key: value for key, value in schema.items() if key != "propertyNames"}
    limits = names.keys() - {"type"}
    if names.get("type", "string") != "string":
        return schema
    if limits == {"enum"} and isinstance(names["enum"], list):
        keys = [name for name in names["enum"] if isinstance(name, str)]
        return {**found, "properties": dict.fromkeys(keys, held), "additionalProperties": False}
    if limits == {"pattern"} and isinstance(names["pattern"], str) and is_possible_pattern(names["pattern"]):
        return {**found, "patternProperties": {names["pattern"]: held}, "additionalProperties": False}
    return schema


def _ids(schema: object) -> dict[str, str]:
    """Places of the schemas that have a name of their own, by name."""
    found: dict[str, str] = {}
    for place, inner in walk(schema):
        for key in ("$id", "id") if isinstance(inner, dict) else ():
            name = inner.get(key) if isinstance(inner, dict) else None
            if isinstance(name, str) and name and not name.startswith("#/"):
                found.setdefault(name, place)
    return found


def _with_living_references(schema: object) -> object:
    """The schema without references to what is not a schema in it, and without ``multipleOf`` if there are
    too many."""
    places: set[str] = set()
    anchors: set[str] = set()
    multiples: list[Fraction] = []
    for place, inner in walk(schema):
        places.add(place)
        if isinstance(inner, dict):
            anchors |= {inner["$anchor"]} if "$anchor" in inner else set()
            multiples += [exact(inner["multipleOf"])] if "multipleOf" in inner else []
    gone = set() if _can_be_joined(multiples) else {"multipleOf"}

    def living(inner: dict[str, Any]) -> dict[str, Any]:
        dead = {"$ref"} if "$ref" in inner and not refers_to(inner["$ref"], places, anchors) else set()
        return {key: value for key, value in inner.items() if key not in gone | dead}

    return _mapped(schema, living)


def _can_be_joined(multiples: list[Fraction]) -> bool:
    try:
        check_multiples(multiples)
    except UsageError:
        return False
    return True
