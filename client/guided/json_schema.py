"""JSON schemas of strangers: only what can be promised, and only in bounded size.

The compiler of schemas ignores keywords that it does not know; here they are refused by name, so that an
answer never looks checked where it is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm
from typing import Any
from urllib.parse import unquote

from ...swarm.errors import UsageError

MAX_DEPTH = 64
"""Levels of JSON; the compiler is recursive."""
MAX_VALUES = 10_000
"""JSON values (keys not counted): bounds what a schema can make the compiler build."""

MAX_PLACES = 4 * 2**20
"""The places of all schemas in it, such as ``/properties/name``, have at most this many characters together:
one long name counts again for each schema below it."""
MAX_MULTIPLE = 100_000
"""Least common multiple of all multipleOf, in units of their last digit: the compiler makes this many
states of them, and its time has no other bound (100,000: 0.7 s)."""
MAX_UNIT = 10**18
"""If the last digits of all multipleOf together are finer than 1/MAX_UNIT, their least common multiple is too
large in any case: none is below 1e-9."""

ONE = frozenset({"items", "additionalItems", "additionalProperties"})
MANY = frozenset({"anyOf", "oneOf", "allOf", "prefixItems", "items"})
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})
ENFORCED = frozenset(
    (
        "$ref",
        "$anchor",
        "const",
        "enum",
        "type",
        "format",
        "pattern",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
    )
    + ("required", "minProperties", "maxProperties", "minimum", "maximum", "exclusiveMinimum")
    + ("exclusiveMaximum", "multipleOf")
)
_KNOWN = ENFORCED | ONE | MANY | NAMED
FORMATS = frozenset(
    ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
)
"""The formats of texts that can be promised."""
_OUT_OF_REACH = re.compile(
    r"\\(?P<escape>.)|\[\^?\]?(?:\\.|[^\]\\])*\]|(?P<group>\(\?(?:<?[=!]|>))", re.DOTALL
)
"""Parts of a regular expression that may ask for more than a grammar can know."""


@dataclass(slots=True)
class _Seen:
    """What a walk over a schema came by: where its schemas are, what they refer to, and from where."""

    places: set[str] = field(default_factory=set)  # JSON pointers; "" is the root
    anchors: set[str] = field(default_factory=set)
    references: list[tuple[str, str]] = field(default_factory=list)  # (place, reference)
    multiples: list[Fraction] = field(default_factory=list)  # values of multipleOf


def check_schema(schema: object) -> None:
    """Raises UsageError, naming the place, for a JSON value that is not a schema we can promise to keep
    to."""
    _check_size(schema)
    seen = _Seen()
    for place, inner in walk(schema):
        _visit(place, inner, seen)
    for place, reference in seen.references:
        if not refers_to(reference, seen.places, seen.anchors):
            raise UsageError(
                f"{_show(place)} of the schema refers to {reference!r:.100}, which is not a schema in it",
                hint='Refer to "#", or to a schema under $defs: "#/$defs/name".',
            )
    check_multiples(seen.multiples)


def refers_to(reference: str, places: AbstractSet[str], anchors: AbstractSet[str]) -> bool:
    """Whether it leads to one of them."""
    target = unquote(reference[1:])
    return reference.startswith("#") and target in (anchors if target and target[0] != "/" else places)


def walk(schema: object) -> Iterator[tuple[str, object]]:
    """A schema and all schemas in it, with their places. Raises UsageError where the places are too long."""
    waiting: list[tuple[str, object]] = [("", schema)]
    characters = 0
    while waiting:
        place, schema = waiting.pop()
        yield place, schema
        for inner in _subschemas(place, schema) if isinstance(schema, dict) else ():
            characters += len(inner[0])
            if characters > MAX_PLACES:
                raise UsageError(
                    "the schema's names are too long", hint="Shorten those that many schemas are under."
                )
            waiting.append(inner)


def _subschemas(place: str, schema: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for keyword, value in schema.items():
        below = f"{place}/{_escape(keyword)}"
        if keyword in MANY and isinstance(value, list):
            yield from ((f"{below}/{index}", inner) for index, inner in enumerate(value))
        elif keyword in NAMED and isinstance(value, dict):
            yield from ((f"{below}/{_escape(name)}", inner) for name, inner in value.items())
        elif keyword in ONE:
            yield below, value


def listed(types: Any) -> list[Any]:
    """The value of ``type``: one, or several."""
    return types if isinstance(types, list) else [types]


def is_possible_pattern(pattern: str) -> bool:
    """Whether it asks for no more than a grammar can know: it may look neither around nor back."""
    found = _OUT_OF_REACH.finditer(pattern)
    return not any(part["group"] or (part["escape"] or " ") in "bBAZzGKkc123456789" for part in found)


def check_multiples(multiples: list[Fraction]) -> None:
    """Together, since schemas that apply to the same number are joined."""
    unit = common = 1
    for multiple in multiples:
        unit = min(lcm(unit, multiple.denominator), MAX_UNIT)
    for multiple in multiples:
        common = min(lcm(common, int(multiple * unit)), MAX_MULTIPLE + 1)
    if unit >= MAX_UNIT or common > MAX_MULTIPLE:
        raise UsageError(
            "the schema's multipleOf are too large, too fine or too many",
            hint=f"Their least common multiple may be {MAX_MULTIPLE} of their last digit at most.",
        )


def _visit(place: str, schema: object, seen: _Seen) -> None:
    """Check one schema."""
    seen.places.add(place)
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise UsageError(
            f"{_show(place)} of the schema is not a schema: {schema!r:.100}",
            hint="Give an object, true or false.",
        )
    for keyword, value in schema.items():
        _check_keyword(place, keyword, schema)
        if keyword == "$ref":
            seen.references.append((place, _reference(place, value)))
        elif keyword == "multipleOf":
            seen.multiples.append(_multiple(place, value))
        elif keyword == "$anchor" and isinstance(value, str):
            seen.anchors.add(value)
        elif (keyword in MANY - ONE and not isinstance(value, list)) or (
            keyword in NAMED and not isinstance(value, dict)
        ):
            kind = "a list" if keyword in MANY else "an object"
            raise UsageError(f"{keyword} at {_show(place)} of the schema is not {kind} of schemas")


def _check_keyword(place: str, keyword: str, schema: dict[str, Any]) -> None:
    value = schema[keyword]
    known = keyword in _KNOWN
    of_text = "string" in listed(schema.get("type", "string"))
    if keyword == "format" and of_text and (not isinstance(value, str) or value not in FORMATS):
        raise UsageError(
            f"the format {value!r:.100} at {_show(place)} of the schema is not supported",
            hint=f"Formats: {', '.join(sorted(FORMATS - {'unknown'}))}.",
        )
    if keyword == "pattern" and isinstance(value, str) and not is_possible_pattern(value):
        raise UsageError(
            f"the pattern {value!r:.100} at {_show(place)} of the schema looks around, or back",
            hint="Write it without look-arounds, word boundaries and references back.",
        )
    if not known:
        raise UsageError(
            f"the schema's keyword {keyword!r:.100} at {_show(place)} is not supported",
            hint="Leave it out, or say it in the prompt: answers are never checked against half a schema.",
        )


def _reference(place: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"$ref at {_show(place)} of the schema is not a text", hint='Write "#/$defs/name".')
    if not value.startswith("#"):
        raise UsageError(
            f"{_show(place)} of the schema refers to {value!r:.100}, outside of it",
            hint='Copy what it refers to under $defs, and refer to "#/$defs/name": nothing is fetched.',
        )
    return value


def _multiple(place: str, value: object) -> Fraction:
    if not is_possible_multiple(value):
        raise UsageError(
            f"multipleOf {value!r:.100} at {_show(place)} of the schema is not possible",
            hint="Give a number from 1e-9 to 1e9.",
        )
    return exact(value)


def is_possible_multiple(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-9 <= value <= 1e9


def exact(number: object) -> Fraction:
    """As it is written."""
    return Fraction(repr(number))


def check_depth(schema: object) -> None:
    """Raises UsageError for a value that is too deep for code that walks through it by recursion."""
    level: list[object] = [schema]
    for _ in range(MAX_DEPTH):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return
    raise UsageError(
        f"the schema nests more than {MAX_DEPTH} deep", hint="Make it flatter, with $defs and $ref."
    )


def _check_size(schema: object) -> None:
    check_depth(schema)
    level: list[object] = [schema]
    values = 0
    while level:
        values += len(level)
        if values > MAX_VALUES:
            raise UsageError(f"the schema holds more than {MAX_VALUES} values", hint="Ask for less at once.")
        level = [inner for value in level for inner in _inside(value)]


def _inside(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _show(place: str) -> str:
    return f"#{place:.200}"
