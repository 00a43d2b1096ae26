"""The values of one object of a file, each read by its type.

A value of a wrong type in a file gives one line that names the file and the key, shows what is there, and
says what belongs there. Every number has bounds, so no value of a file reaches a computation unchecked. True
and false do not count as numbers, nor 1.0 as a whole number, as in transformers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from ....swarm.errors import CheckpointError
from .shown import shown

MAX_LIST = 4096
"""A list that is read whole has at most this many entries."""
_MAX_INTEGER = 2**63 - 1


class _Required(Enum):
    """Stands for the default of a key that a file must have."""

    REQUIRED = "required"


REQUIRED: Final = _Required.REQUIRED


class Fields:
    """``values``: the object. ``where``: the file, for messages. ``inside``: the object's own key in the
    file, with a dot behind it, or nothing for the outermost. ``names``: what the file calls a key, with the
    keys of objects that it is in, where that is another name.

    Methods named ``optional_…`` give None for null and for a key that is missing, unless ``default`` says
    otherwise; for all others null is a value of the wrong type. CheckpointError for a value of another type,
    or outside its bounds.
    """

    def __init__(
        self, values: Mapping[str, Any], where: str, inside: str = "", names: Mapping[str, str] | None = None
    ) -> None:
        self._values = values
        self.where = where
        self._inside = inside
        self._names = names or {}
        self._read: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether the key is there, with any value."""
        self._read.add(key)
        return key in self._values

    def is_null(self, key: str) -> bool:
        """Whether the key is there and its value is null."""
        return self.has(key) and self._values[key] is None

    def is_given(self, key: str) -> bool:
        """Whether the key is there with a value other than null."""
        return self.has(key) and self._values[key] is not None

    def is_text(self, key: str) -> bool:
        return self.has(key) and isinstance(self._values[key], str)

    def all_keys(self) -> list[str]:
        """Every key."""
        return sorted(self._values)

    def key(self, key: str) -> str:
        """The key as the file has it, with those of the objects that it is in."""
        return f"{self._inside}{key}"

    def value(self, key: str) -> Any:
        """The value, of any type; None for a missing key."""
        return self._get(key, REQUIRED)

    def was_read(self, key: str) -> bool:
        return key in self._read

    def unread(self) -> list[str]:
        """Keys that were not read."""
        return sorted(self._values.keys() - self._read)

    def named(self, key: str) -> str:
        """File and key, as a message begins."""
        key = self.key(key)
        return f"{self.where}: {self._names.get(key, key)}"

    def shown(self, key: str) -> str:
        """The value as a message shows it."""
        return shown(self._values.get(key))

    def integer(
        self, key: str, default: int | _Required = REQUIRED, *, least: int = 0, most: int = _MAX_INTEGER
    ) -> int:
        value = self._get(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"a whole number {_between(least, most)}")
        return value

    def optional_integer(
        self, key: str, default: int | None = None, *, least: int = 0, most: int = _MAX_INTEGER
    ) -> int | None:
        """``default``: for a missing key only; null is None."""
        if default is None or self.has(key):
            return self.integer(key, least=least, most=most) if self.is_given(key) else None
        return default

    def number(
        self,
        key: str,
        default: float | _Required = REQUIRED,
        *,
        above: float = -sys.float_info.max,
        below: float = sys.float_info.max,
        least: float | None = None,
    ) -> float:
        """A finite number between the bounds; with ``least``, that or more. A whole number counts too."""
        value = self._get(key, default)
        if type(value) in (int, float):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if number < below and (above < number if least is None else least <= number):
                return number
        floor = f"above {above:g}" if least is None else f"of {least:g} or more"
        raise self.wrong(key, f"a number {floor} and below {below:g}")

    def optional_number(
        self, key: str, *, above: float = -sys.float_info.max, below: float = sys.float_info.max
    ) -> float | None:
        return self.number(key, above=above, below=below) if self.is_given(key) else None

    def flag(self, key: str, default: bool | _Required = REQUIRED) -> bool:
        value = self._get(key, default)
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | _Required = REQUIRED) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def optional_text(self, key: str) -> str | None:
        return self.text(key) if self.is_given(key) else None

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty for null and for a missing key."""
        return tuple(self._list(key, str, "a list of texts"))

    def integers(self, key: str, *, most: int, entries: int = MAX_LIST) -> tuple[int, ...]:
        """One whole number or a list of them, each from 0 to ``most``, every one once; empty for null and for
        a missing key."""
        if self.has(key) and type(self._values[key]) is int:
            return (self.integer(key, most=most),)
        wanted = f"a whole number {_between(0, most)}, or a list of up to {entries} of them"
        found = self._list(key, int, wanted)
        if len(found) > entries or not all(type(each) is int and 0 <= each <= most for each in found):
            raise self.wrong(key, wanted)
        return tuple(dict.fromkeys(found))

    def section(self, key: str) -> Fields | None:
        """An object inside of this one; None for an empty one, for null and for a missing key."""
        value = self.value(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.wrong(key, "an object")
        return self._within(value, key) if value else None

    def sections(self, key: str) -> list[Fields]:
        """Every object of a list; none for null and for a missing key."""
        found = self._list(key, Mapping, "a list of objects")
        return [self._within(each, f"{key}[{at}]") for at, each in enumerate(found)]

    def inner(self) -> list[tuple[str, Fields]]:
        """The values that are objects, under their keys."""
        objects = [(key, value) for key, value in self._values.items() if isinstance(value, Mapping)]
        return [(key, self._within(value, key)) for key, value in objects]

    def numbers(
        self,
        key: str,
        *,
        above: float = -sys.float_info.max,
        below: float = sys.float_info.max,
        least: float | None = None,
    ) -> tuple[float, ...]:
        """A list of finite numbers between the bounds; empty for null and for a missing key."""
        found = self._list(key, (int, float), "a list of numbers")
        each = self._within({str(at): value for at, value in enumerate(found)}, key)
        return tuple(each.number(str(at), above=above, below=below, least=least) for at in range(len(found)))

    def is_one_of(self, key: str, allowed: tuple[Any, ...]) -> bool:
        """Whether the key is missing, or its value, of any type, is among ``allowed``."""
        return not self.has(key) or any(self._values[key] == each for each in allowed)

    def wrong(self, key: str, expected: str) -> CheckpointError:
        """What to raise for a value that is not what it should be."""
        there = f"is {self.shown(key)}" if key in self._values else "is missing"
        return CheckpointError(f"{self.named(key)} {there}, expected {expected}")

    def _within(self, values: Mapping[str, Any], key: str) -> Fields:
        return Fields(values, self.where, f"{self._inside}{key}.", self._names)

    def _get(self, key: str, default: Any) -> Any:
        self._read.add(key)
        if key in self._values:
            return self._values[key]
        return None if default is REQUIRED else default

    def _list(self, key: str, kind: type | tuple[type, ...], expected: str) -> list[Any]:
        value = self._values[key] if self.is_given(key) else []
        if (
            not isinstance(value, list)
            or len(value) > MAX_LIST
            or not all(isinstance(each, kind) for each in value)
        ):
            raise self.wrong(key, expected)
        return value


def _between(least: int, most: int) -> str:
    return f"of {least} or more" if most == _MAX_INTEGER else f"from {least} to {most}"
