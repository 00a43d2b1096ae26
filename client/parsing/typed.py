"""Arguments that a model writes as plain text, as the values that a tool's schema asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from .feed import Mismatch
from .json_text import loaded
from .literals import WORDS, read_value

MAX_SCHEMAS = 64
"""At most this many schemas, one in another, are looked into for the types of one argument. They may refer to
each other in circles, and to several at once."""

_TYPES: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}


class KnownTools:
    """``schemas``: of the arguments of each tool, by its name. They come from strangers, unchecked."""

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self.names = frozenset(schemas)
        self._schemas = schemas

    def typed(self, tool: str, argument: str, text: str) -> Any:
        """What ``text`` stands for: a text, unless another type is asked for, and it is one."""
        schema = self._schemas.get(tool)
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        own = properties.get(argument) if isinstance(properties, Mapping) else None
        types = _types(own, schema)
        if types == {"string"}:
            return text
        value = _value(text)
        kind = _TYPES[type(value)]
        if kind in types or (kind == "integer" and "number" in types):
            return value
        # 3.0 is a whole number, too, in JSON Schema
        if kind == "number" and "integer" in types and value == int(value):
            return int(value)
        if "string" in types:
            return text
        if value is None:  # of an argument that is left out
            return None
        return value if not types and kind not in ("integer", "number") else text


def _value(text: str) -> Any:
    """What it is in JSON or in Python, or the text itself."""
    word = text.strip()
    if word.lower() in WORDS:
        return WORDS[word.lower()]
    try:
        return loaded(word)
    except ValueError:
        pass
    if not word.startswith(("{", "[")):
        return text
    try:
        return read_value(word)  # as Seed-OSS's template shows objects and lists
    except Mismatch:
        return text


def _types(schema: Any, root: Any) -> set[str]:
    """The types that a value of the schema may have; none where it does not say."""
    found = set[str]()
    schemas = [schema]
    for each in schemas:
        if isinstance(each, Mapping):
            found |= _own_types(each)
            schemas += islice(_inner(each, root), MAX_SCHEMAS - len(schemas))
    return found


def _own_types(schema: Mapping[str, Any]) -> set[str]:
    """Those that it says itself, without the schemas in it."""
    named = schema.get("type")
    found = {each for each in (named if isinstance(named, list) else [named]) if isinstance(each, str)}
    if schema.get("nullable") is True:
        found.add("null")
    if found:
        return found
    choices = schema.get("enum")
    choices = choices if isinstance(choices, list) else [schema["const"]] if "const" in schema else []
    return {_TYPES[type(choice)] for choice in choices if type(choice) in _TYPES}


def _inner(schema: Mapping[str, Any], root: Any) -> Iterator[Any]:
    """Schemas of which each may say of what type a value is."""
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list):
            yield from schema[key]
    if isinstance(schema.get("$ref"), str):
        yield _referred(schema["$ref"], root)


def _referred(reference: str, root: Any) -> Any:
    """What a reference inside ``root`` leads to; None for nothing."""
    if not reference.startswith("#/"):
        return None
    for step in reference[2:].split("/"):
        if not isinstance(root, Mapping):
            return None
        root = root.get(step.replace("~1", "/").replace("~0", "~"))
    return root
