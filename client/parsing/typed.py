"""Arguments that a model writes as plain text, as the values that a tool's schema asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .json_text import loaded

MAX_DEPTH = 8
"""Schemas in schemas that are looked into for the types of one argument."""

_TYPES: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}
_WORDS = {"true": True, "false": False, "null": None, "none": None}


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
        types = _types(own, schema, MAX_DEPTH)
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
        return value if not types and kind not in ("integer", "number") else text


def _value(text: str) -> Any:
    """The JSON that it is, or the text itself."""
    word = text.strip()
    if word.lower() in _WORDS:  # as in Python, which many models write
        return _WORDS[word.lower()]
    try:
        return loaded(word)
    except ValueError:
        return text


def _types(schema: Any, root: Any, depth: int) -> set[str]:
    """The types that a value of the schema may have; none where it does not say."""
    if not isinstance(schema, Mapping) or not depth:
        return set()
    found = set[str]()
    named = schema.get("type")
    found.update(each for each in (named if isinstance(named, list) else [named]) if isinstance(each, str))
    if schema.get("nullable") is True:
        found.add("null")
    if not found:
        choices = schema.get("enum")
        choices = choices if isinstance(choices, list) else [schema["const"]] if "const" in schema else []
        found.update(_TYPES[type(choice)] for choice in choices if type(choice) in _TYPES)
    for key in ("anyOf", "oneOf", "allOf"):
        for inner in schema[key][:64] if isinstance(schema.get(key), list) else ():
            found |= _types(inner, root, depth - 1)
    if isinstance(schema.get("$ref"), str):
        found |= _types(_referred(schema["$ref"], root), root, depth - 1)
    return found


def _referred(reference: str, root: Any) -> Any:
    """What a reference inside ``root`` leads to; None for nothing."""
    if not reference.startswith("#/"):
        return None
    for step in reference[2:].split("/"):
        if not isinstance(root, Mapping):
            return None
        root = root.get(step.replace("~1", "/").replace("~0", "~"))
    return root
