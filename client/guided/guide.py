"""What an answer is to look like: JSON, JSON of a schema, a regular expression, or a grammar.

Nothing is compiled here: a ``Guide`` is only known to be within bounds. Senders of schemas may be
hostile, so its size, its nesting and what it may refer to are limited before any library sees it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ...swarm.errors import UsageError
from ..decoding.checks import impossible
from .json_schema import check_schema
from .schema_forms import plain

GuideKind = Literal["json_object", "json_schema", "regex", "lark"]

MAX_SOURCE = 64 * 1024
"""A schema, expression or grammar has at most this many characters."""
MAX_NESTING = 64
"""Levels of brackets in an expression or grammar: the compilers of both are recursive."""
MAX_LINES = 500
"""A grammar has at most this many lines. That bounds its rules, as each begins a line, and so how deep they
nest."""
_EMBEDDED_JSON = re.compile(r"%json\b\s*")


@dataclass(frozen=True, slots=True)
class Guide:
    """Lets an answer hold only what fits.

        Guide("json_object")
        Guide("json_schema", {"type": "object", "properties": {"city": {"type": "string"}}})
        Guide("regex", "[0-9]{4}-[0-9]{2}")
        Guide("lark", 'start: "yes" | "no"')

    A schema is a mapping, or its JSON text; a regular expression is one of Rust's, and matches the whole
    answer; a grammar is in llguidance's variant of Lark's syntax. ``source`` afterwards is text, so that
    equal guides compare equal. Raises UsageError for what is too large, malformed, or asks for what no
    grammar can promise, such as ``uniqueItems``: nothing is silently left out, but for what only describes,
    such as titles. ``weaker`` is used in its place where it turns out to be more than can be compiled.
    """

    kind: GuideKind
    source: str | Mapping[str, Any] = ""
    weaker: Guide | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(GuideKind):
            raise impossible("the kind of guide", self.kind, " or ".join(map(repr, get_args(GuideKind))))
        if self.kind == "json_object":
            if self.source != "":
                raise UsageError("a json_object guide takes no source", hint='Use Guide("json_schema", ...).')
        elif self.kind == "json_schema":
            object.__setattr__(self, "source", _schema_text(self.source))
        else:
            _check_text(self.kind, self.source)

    @property
    def text(self) -> str:
        """``source``, which is text once it is checked."""
        return self.source if isinstance(self.source, str) else ""


def _schema_text(source: object) -> str:
    """The schema as JSON text without spaces, its keys in their order: answers have them in the same."""
    if isinstance(source, str):
        _check_length("json_schema", source)
        source = _parse(source)
    if not isinstance(source, Mapping):
        raise impossible("the schema", source, 'an object, such as {"type": "object"}')
    try:
        # As JSON has it: keys that are no text have become one. All drafts are read as 2020-12.
        schema = plain(json.loads(json.dumps(dict(source), allow_nan=False)))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"the schema is not JSON: {error}", hint="Give a mapping of JSON values, or JSON text."
        ) from None
    text = json.dumps(schema, separators=(",", ":"), ensure_ascii=False)
    _check_length("json_schema", text)
    check_schema(schema)
    return text


def _parse(text: str) -> object:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the schema is not JSON: {error}", hint="Check it with a JSON validator.") from None


def _check_text(kind: str, source: object) -> None:
    if not isinstance(source, str) or not source.strip():
        raise impossible(f"{kind} source", source, "a text")
    _check_length(kind, source)
    try:
        source.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the {kind} holds characters that are not valid Unicode") from None
    depth = deepest = 0
    for character in source:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth = max(0, depth - 1)
    if deepest > MAX_NESTING:
        raise UsageError(
            f"the {kind} nests brackets {deepest} deep", hint=f"At most {MAX_NESTING} levels are taken."
        )
    if kind == "lark":
        if source.count("\n") > MAX_LINES:
            raise UsageError(
                f"the grammar has over {MAX_LINES} lines", hint="Make it simpler, or join some of its lines."
            )
        for embedded in embedded_schemas(source):
            check_schema(embedded.schema)


@dataclass(frozen=True, slots=True)
class EmbeddedSchema:
    """A schema inside a grammar, in its plain form, and where its text begins and ends there."""

    start: int
    end: int
    schema: dict[str, Any]


def embedded_schemas(grammar: str) -> list[EmbeddedSchema]:
    """The schemas of a grammar, each after ``%json``. Raises UsageError where none follows."""
    decoder = json.JSONDecoder()
    found = []
    for place in _EMBEDDED_JSON.finditer(grammar):
        try:
            schema, end = decoder.raw_decode(grammar, place.end())
        except (ValueError, RecursionError):
            schema = end = None
        if not isinstance(schema, dict) or end is None:
            raise UsageError(
                f"no JSON schema follows %json at character {place.start()} of the grammar",
                hint="Write %json {...} with nothing in between, and no %json elsewhere.",
            )
        found.append(EmbeddedSchema(place.end(), end, plain(schema)))
    return found


def _check_length(kind: str, text: str) -> None:
    if len(text) > MAX_SOURCE:
        raise UsageError(
            f"the {kind} has {len(text)} characters", hint=f"At most {MAX_SOURCE} are taken: shorten it."
        )
