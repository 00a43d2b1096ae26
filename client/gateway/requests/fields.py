"""A JSON object of a request, read field by field: each value has the right type, size and range, or the
error names the field. ``null`` is as good as a field that is not there, as at OpenAI."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NoReturn

from ...http.errors import ApiError, refused, wrong


class BodyFields:
    """``where``: what the object is called in the request, such as ``messages[0]``; "" is the body itself."""

    def __init__(self, value: object, where: str = "") -> None:
        if not isinstance(value, dict):
            raise wrong(where, f"must be an object, not {kind_of(value)}")
        self._values: dict[str, Any] = value
        self.where = where
        self.read: set[str] = set()
        """Names that were asked for."""
        self._inner: dict[str, BodyFields] = {}  # by their ``where``
        self._is_whole = False

    def name(self, field: str) -> str:
        return f"{self.where}.{field}" if self.where else field

    def unread(self) -> Iterator[tuple[BodyFields, str, Any]]:
        """The fields that were not read, here and in inner objects that were: the object, the field, its
        value. Those that are null are left out."""
        if self._is_whole:
            return
        for field, value in self._values.items():
            if value is not None and field not in self.read:
                yield self, field, value
        for inner in self._inner.values():
            yield from inner.unread()

    def has(self, field: str) -> bool:
        return self._get(field) is not None

    def raw(self, field: str) -> Any:
        return self._get(field)

    def raw_all(self) -> dict[str, Any]:
        """All of it, as it came."""
        self._is_whole = True
        return self._values

    def wrong(self, field: str, problem: str) -> ApiError:
        return wrong(self.name(field), problem)

    def text(self, field: str, *, longest: int) -> str | None:
        value = self._get(field)
        return None if value is None else text_of(value, self.name(field), longest)

    def required_text(self, field: str, *, longest: int) -> str:
        if self._get(field) is None:
            self._absent(field)
        return text_of(self._get(field), self.name(field), longest)

    def number(self, field: str, low: float, high: float) -> float | None:
        value = self._get(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(field, f"must be a number, not {kind_of(value)}")
        if not low <= value <= high:  # NaN and what no float holds are outside, too
            raise self.wrong(field, f"must be from {_plain(low)} to {_plain(high)}")
        return float(value)

    def integer(self, field: str, low: int, high: int) -> int | None:
        value = self._get(field)
        if value is None:
            return None
        return integer_of(value, self.name(field), low, high)

    def flag(self, field: str) -> bool | None:
        value = self._get(field)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(field, f"must be true or false, not {kind_of(value)}")
        return value

    def one_of(self, field: str, choices: Collection[str], *, required: bool = False) -> str | None:
        value = self._get(field)
        if value is None and not required:
            return None
        if value is None:
            self._absent(field)
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(field, f"must be one of {', '.join(map(repr, choices))}")
        return value

    def inner(self, field: str) -> BodyFields | None:
        value = self._get(field)
        return None if value is None else self._object(value, self.name(field))

    def required_inner(self, field: str) -> BodyFields:
        return self._object(self._get(field), self.name(field))

    def items(self, field: str, *, most: int, required: bool = False) -> list[Any] | None:
        value = self._get(field)
        if value is None and not required:
            return None
        if value is None:
            self._absent(field)
        if not isinstance(value, list):
            raise self.wrong(field, f"must be a list, not {kind_of(value)}")
        if len(value) > most:
            raise self.wrong(field, f"has {len(value)} items, {most} are possible")
        return value

    def objects(self, field: str, *, most: int, required: bool = False) -> Iterator[BodyFields]:
        for number, item in enumerate(self.items(field, most=most, required=required) or ()):
            yield self._object(item, f"{self.name(field)}[{number}]")

    def texts(self, field: str, *, most: int, longest: int) -> tuple[str, ...]:
        """One text, or a list of them."""
        value = self._get(field)
        if value is None:
            return ()
        if isinstance(value, str):
            return (text_of(value, self.name(field), longest),)
        items = self.items(field, most=most) or []
        return tuple(
            text_of(item, f"{self.name(field)}[{number}]", longest) for number, item in enumerate(items)
        )

    def refuse(self, field: str, *allowed: object, why: str = "is not supported by this gateway") -> None:
        """Raise for a field that asks for something; ``allowed`` values ask for nothing."""
        value = self._get(field)
        if value is not None and not any(type(value) is type(one) and value == one for one in allowed):
            raise refused(self.name(field), why)

    def _object(self, value: object, where: str) -> BodyFields:
        """The same each time: what has been read of it stays so."""
        if where not in self._inner:
            self._inner[where] = BodyFields(value, where)
        return self._inner[where]

    def _get(self, field: str) -> Any:
        self.read.add(field)
        return self._values.get(field)

    def _absent(self, field: str) -> NoReturn:
        raise self.wrong(field, "is required")


def text_of(value: object, name: str, longest: int) -> str:
    if not isinstance(value, str):
        raise wrong(name, f"must be a text, not {kind_of(value)}")
    if len(value) > longest:
        raise wrong(name, f"has {len(value)} characters, {longest} are possible")
    return value


def integer_of(value: object, name: str, low: int, high: int) -> int:
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)  # JavaScript knows no other numbers
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(name, f"must be a whole number, not {kind_of(value)}")
    if not low <= value <= high:
        raise wrong(name, f"must be from {low} to {high}")
    return value


def integers(values: Sequence[Any]) -> bool:
    return all(type(value) is int for value in values)


def kind_of(value: object) -> str:
    """What JSON calls it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    names: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), "something else")


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)
