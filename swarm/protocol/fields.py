"""The types that a message's fields may have on the wire, each with its bounds.

A field type reads what msgpack gave (``read``) and makes what msgpack packs (``write``). Both raise
FieldError for a value that is not of the type or not within the bounds, so that what we send obeys the same
rules as what we accept. Messages attach them with ``typing.Annotated``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, cast

from ..errors import UsageError
from ..figures import Figure
from ..types import Span


class FieldError(Exception):
    """A value that does not fit. ``where`` is the path inside the field, such as ``[0]``."""

    def __init__(self, expected: str, value: object, where: str = "") -> None:
        super().__init__(expected)
        self.expected = expected
        self.value = value
        self.where = where

    def inside(self, where: str) -> FieldError:
        return FieldError(self.expected, self.value, where + self.where)

    def describe(self, field: str) -> str:
        """``position is -1, not an integer from 0 to 10``: names the field, the value and its bound."""
        return f"{field}{self.where} is {_short(self.value)}, not {self.expected}"


class FieldType(Protocol):
    def read(self, value: object) -> object: ...

    def write(self, value: object) -> object: ...


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer, bounds inclusive. ``True`` does not count as one."""

    low: int
    high: int

    def read(self, value: object) -> int:
        if type(value) is int and self.low <= value <= self.high:
            return value
        raise FieldError(f"an integer from {self.low} to {self.high}", value)

    write = read


@dataclass(frozen=True, slots=True)
class Real:
    """A finite number from ``low`` to ``high``; an integer on the wire will do."""

    low: float
    high: float

    def read(self, value: object) -> float:
        if type(value) in (int, float):
            number = cast(float, value)
            if self.low <= number <= self.high:  # false for NaN
                return float(number)
        raise FieldError(f"a number from {self.low:g} to {self.high:g}", value)

    write = read


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured figure. A peer's must be within its bounds; ours is told as the nearest that is, since what
    we measure must never keep us from speaking."""

    figure: Figure

    def read(self, value: object) -> float:
        if type(value) in (int, float) and self.figure.holds(number := cast(float, value)):
            return float(number)
        raise FieldError(str(self.figure), value)

    def write(self, value: object) -> float:
        if type(value) in (int, float):
            return self.figure.nearest(cast(float, value))
        raise FieldError("a number", value)


@dataclass(frozen=True, slots=True)
class Count:
    """An integer from 0 to ``high`` that was measured or counted: as Measured."""

    high: int

    def read(self, value: object) -> int:
        if type(value) is int and 0 <= value <= self.high:
            return value
        raise FieldError(f"an integer from 0 to {self.high}", value)

    def write(self, value: object) -> int:
        if type(value) is not int:
            raise FieldError("an integer", value)
        return value if 0 <= value <= self.high else min(max(value, 0), self.high)


@dataclass(frozen=True, slots=True)
class Boolean:
    def read(self, value: object) -> bool:
        if type(value) is bool:
            return value
        raise FieldError("true or false", value)

    write = read


@dataclass(frozen=True, slots=True)
class Blob:
    """Exactly ``size`` bytes."""

    size: int

    def read(self, value: object) -> bytes:
        if type(value) is bytes and len(value) == self.size:
            return value
        raise FieldError(f"{self.size} bytes", value)

    write = read


@dataclass(frozen=True, slots=True)
class ShortBytes:
    """At most ``limit`` bytes."""

    limit: int

    def read(self, value: object) -> bytes:
        if type(value) is bytes and len(value) <= self.limit:
            return value
        raise FieldError(f"at most {self.limit} bytes", value)

    write = read


@dataclass(frozen=True, slots=True)
class Word:
    """A short identifier that matches ``pattern`` as a whole; ``what`` describes it to people."""

    pattern: re.Pattern[str]
    what: str

    def read(self, value: object) -> str:
        if type(value) is str and self.pattern.fullmatch(value):
            return value
        raise FieldError(self.what, value)

    write = read


@dataclass(frozen=True, slots=True)
class Prose:
    """A line of printable text for people, at most ``limit`` characters.

    A peer's control characters (terminal escapes, line breaks) are refused. Our own text is made to fit,
    since an error report must never fail over its wording.
    """

    limit: int

    def read(self, value: object) -> str:
        if type(value) is str and len(value) <= self.limit and value.isprintable():
            return value
        raise FieldError(f"printable text of at most {self.limit} characters", value)

    def write(self, value: object) -> str:
        if type(value) is not str:
            raise FieldError("text", value)
        if not value.isprintable():
            value = "".join(character if character.isprintable() else " " for character in value)
        return value if len(value) <= self.limit else value[: self.limit - 1] + "…"


@dataclass(frozen=True, slots=True)
class Choice:
    """A member of an enumeration, by value. ``unknown``, if given, stands for values of later versions."""

    enum: type[Enum]
    unknown: Enum | None = None

    def read(self, value: object) -> Enum:
        # Exactly the type: True would pass for 1.
        if type(value) is (int if issubclass(self.enum, int) else str):
            try:
                return self.enum(value)
            except ValueError:
                if self.unknown is not None:
                    return self.unknown
        raise FieldError(f"one of {', '.join(str(member.value) for member in self.enum)}", value)

    def write(self, value: object) -> object:
        if isinstance(value, self.enum):
            return value.value
        raise FieldError(f"a {self.enum.__name__}", value)


@dataclass(frozen=True, slots=True)
class Sequence:
    """``low`` to ``high`` items of one type; a tuple here, an array on the wire."""

    item: FieldType
    low: int
    high: int

    def read(self, value: object) -> tuple[object, ...]:
        return tuple(self._items(value, list, self.item.read))

    def write(self, value: object) -> list[object]:
        return self._items(value, tuple, self.item.write)

    def _items(self, value: object, kind: type, convert: Callable[[object], object]) -> list[object]:
        if not isinstance(value, kind) or not self.low <= len(value) <= self.high:  # type: ignore[arg-type]
            raise FieldError(f"a list of {self.low} to {self.high} items", value)
        items = []
        for index, item in enumerate(value):  # type: ignore[arg-type, var-annotated]
            try:
                items.append(convert(item))
            except FieldError as error:
                raise error.inside(f"[{index}]") from None
        return items


@dataclass(frozen=True, slots=True)
class SpanField:
    """A span of blocks: ``[start, end]`` on the wire, half-open."""

    def read(self, value: object) -> Span:
        if isinstance(value, list) and len(value) == 2 and type(value[0]) is type(value[1]) is int:
            try:
                return Span(value[0], value[1])
            except UsageError:
                pass  # same refusal as for any other value that is not a span
        raise FieldError("a span of blocks [start, end]", value)

    def write(self, value: object) -> list[int]:
        if isinstance(value, Span):
            return [value.start, value.end]
        raise FieldError("a Span", value)


@dataclass(frozen=True, slots=True)
class Maybe:
    """The type, or nothing: None here, nil or absent on the wire."""

    item: FieldType

    def read(self, value: object) -> object:
        return None if value is None else self.item.read(value)

    def write(self, value: object) -> object:
        return None if value is None else self.item.write(value)


def _short(value: object) -> str:
    """A value for an error message: bounded, and without a peer's control characters."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    if isinstance(value, list | tuple | dict):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, str) and len(value) > 60:
        return f"text of {len(value)} characters"
    return ascii(value) if isinstance(value, str) else repr(value)
