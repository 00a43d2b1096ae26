"""JSON schemas of strangers: only what can be promised, and only so much of it.

The compiler of schemas passes over keywords that it does not know; here they are refused by name, so that an
answer never looks checked where it is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm
from urllib.parse import unquote

from ..swarm.errors import UsageError

MAX_DEPTH = 64
"""Levels of JSON; the compiler is recursive."""
MAX_VALUES = 10_000
"""JSON values (keys not counted): bounds what a schema can make the compiler build."""

MAX_PLACES = 4 * 2**20
"""Characters of the places of all schemas in it together, such as ``/properties/name``: one long name counts
again for each schema below it."""
MAX_MULTIPLE = 100_000
"""Least common multiple of all multipleOf, in units of their last digit: what the compiler makes of them has
so many states, and time without a bound goes into them (100,000: 0.7 s)."""
MAX_UNIT = 10**18
"""Where the last digits of all multipleOf together are finer than one part in so many, their least common
multiple is too large in any case: none is below 1e-9."""

_ONE = frozenset({"items", "additionalItems", "additionalProperties"})
_MANY = frozenset({"anyOf", "oneOf", "allOf", "prefixItems", "items"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_ENFORCED = frozenset(
    ("$ref", "const", "enum", "type", "format", "pattern", "minLength", "maxLength", "minItems", "maxItems")
    + ("required", "minProperties", "maxProperties", "minimum", "maximum", "exclusiveMinimum")
    + ("exclusiveMaximum", "multipleOf")
)
_ANNOTATIONS = frozenset(
    ("$comment", "$anchor", "title", "description", "default", "example", "examples", "deprecated")
    + ("readOnly", "writeOnly", "contentMediaType", "contentEncoding", "discriminator")
)
"""Keywords that constrain nothing; ``discriminator`` (OpenAPI) only names what a oneOf beside it says."""
_AT_THE_ROOT = frozenset({"$id", "id"})
"""Below the root they would change what references refer to."""


@dataclass(slots=True)
class _Seen:
    """What a walk over a schema came by: where its schemas are, what they refer to, and from where."""

    places: set[str] = field(default_factory=set)  # JSON pointers; "" is the root
    anchors: set[str] = field(default_factory=set)
    references: list[tuple[str, str]] = field(default_factory=list)  # (place, reference)
    multiples: list[Fraction] = field(default_factory=list)  # values of multipleOf
    characters: int = 0  # of the places


def check_schema(schema: object) -> None:
    """Raises UsageError, naming the place, for a JSON value that is no schema we can promise to keep to."""
    _check_size(schema)
    seen = _Seen()
    waiting: list[tuple[str, object]] = [("", schema)]
    while waiting:
        place, schema = waiting.pop()
        waiting += _visit(place, schema, seen)
    for place, reference in seen.references:
        if unquote(reference[1:]) not in (seen.anchors if reference[1:2] not in ("", "/") else seen.places):
            raise UsageError(
                f"{_show(place)} of the schema refers to {reference!r:.100}, which is no schema of it",
                hint='Refer to "#", or to a schema under $defs: "#/$defs/name".',
            )

    _check_multiples(seen.multiples)


def _check_multiples(multiples: list[Fraction]) -> None:
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


def _visit(place: str, schema: object, seen: _Seen) -> Iterator[tuple[str, object]]:
    """Check one schema; the schemas in it, with their places."""
    seen.characters += len(place)
    if seen.characters > MAX_PLACES:
        raise UsageError("the schema's names are too long", hint="Shorten those that many schemas are under.")
    seen.places.add(place)
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise UsageError(
            f"{_show(place)} of the schema is no schema: {schema!r:.100}",
            hint="Give an object, true or false.",
        )
    for keyword, value in schema.items():
        _check_keyword(place, keyword)
        below = f"{place}/{_escape(keyword)}"
        if keyword == "$ref":
            seen.references.append((place, _reference(place, value)))
        elif keyword == "multipleOf":
            seen.multiples.append(_multiple(place, value))
        elif keyword == "$anchor" and isinstance(value, str):
            seen.anchors.add(value)
        elif keyword in _MANY and isinstance(value, list):
            yield from ((f"{below}/{index}", inner) for index, inner in enumerate(value))
        elif keyword in _NAMED and isinstance(value, dict):
            yield from ((f"{below}/{_escape(name)}", inner) for name, inner in value.items())
        elif keyword in _ONE:
            yield below, value
        elif keyword in _MANY or keyword in _NAMED:
            kind = "a list" if keyword in _MANY else "an object"
            raise UsageError(f"{keyword} at {_show(place)} of the schema is not {kind} of schemas")


def _check_keyword(place: str, keyword: str) -> None:
    if keyword in _AT_THE_ROOT and not place:
        return
    known = keyword in _ENFORCED | _ANNOTATIONS | _ONE | _MANY | _NAMED
    if not known and (not keyword.startswith("x-") or keyword == "x-guidance"):
        raise UsageError(
            f"the schema's keyword {keyword!r:.100} at {_show(place)} is not supported",
            hint="Leave it out, or say it in the prompt: answers are never checked against half a schema.",
        )


def _reference(place: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"$ref at {_show(place)} of the schema is no text", hint='Write "#/$defs/name".')
    if not value.startswith("#"):
        raise UsageError(
            f"{_show(place)} of the schema refers to {value!r:.100}, outside of it",
            hint='Copy what it refers to under $defs, and refer to "#/$defs/name": nothing is fetched.',
        )
    return value


def _multiple(place: str, value: object) -> Fraction:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 1e-9 <= value <= 1e9
    if not good:
        raise UsageError(
            f"multipleOf {value!r:.100} at {_show(place)} of the schema is not possible",
            hint="Give a number from 1e-9 to 1e9.",
        )
    return Fraction(repr(value))


def _check_size(schema: object) -> None:
    level: list[object] = [schema]
    depth = values = 0
    while level:
        depth, values = depth + 1, values + len(level)
        if depth > MAX_DEPTH:
            raise UsageError(
                f"the schema nests more than {MAX_DEPTH} deep", hint="Make it flatter, with $defs and $ref."
            )
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
