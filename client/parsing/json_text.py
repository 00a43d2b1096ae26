"""Whether a text can still become the JSON that is expected, character by character: a tool call, a list of
them, or an object.

A call is a JSON object of the keys in ``KEYS`` alone: ``name``, or Command's ``tool_name``, is that of a
tool; ``arguments``, or Llama's ``parameters``, are objects, or texts of them, as Granite's often are. What
can no longer be one is text, and may be shown.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from ...shards.formats.bounded_json import is_deeper

NAMES = ("name", "tool_name")
ARGUMENTS = ("parameters", "arguments")
KEYS = frozenset({*NAMES, *ARGUMENTS, "id", "tool_call_id", "type"})
_SPACE = " \t\n\r"
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_NUMBER_BEGIN = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:(?<=[0-9])[eE][+-]?[0-9]*)?)?")
_LONGEST = 1024
"""A number, or a name or key with escapes, has at most this many characters: it is read anew with every
character."""
_DEEPEST = 66
"""At most this many objects and lists are in each other: as many as in a request, and a call in a list."""
_WORDS = ("true", "false", "null")
Role = Literal["calls", "call", "name", "arguments", "object", "anything"]
"""What a value must be: one call or a list of them, a call, a tool's name, an object or its text, an object;
or it may be anything."""

_ROLES: dict[str, Role] = {**dict.fromkeys(NAMES, "name"), **dict.fromkeys(ARGUMENTS, "arguments")}


@dataclass(slots=True)
class _Container:
    """A list or an object that is not closed. ``role``: of the object, or of the list's items. ``key``: the
    one whose value comes, None before there is one. ``keys``: of a call, those it has."""

    is_list: bool
    role: Role
    key: str | None = None
    keys: set[str] = field(default_factory=set)


class JsonText:
    """``push`` a character at a time; what it says is whether there is still a way. ``is_complete``: it is
    there already, and only space may follow."""

    def __init__(self, role: Role, names: Iterable[str] = ()) -> None:
        """``names``: of the tools that calls may name."""
        self._names = frozenset(names)
        self._open: list[_Container] = []
        self._role: Role = role  # of the value that comes next
        self._step: Callable[[str], bool] = self._value
        self._word = ""  # of a string, number or literal, so far
        self._words: frozenset[str] | None = None  # what a string may be; None: anything
        self._digits = 0  # that an escape still needs
        self.is_complete = False

    def push(self, character: str) -> bool:
        return self._step(character)

    def _value(self, character: str) -> bool:
        if character in _SPACE:
            return True
        role = self._role
        if character in "{[" and len(self._open) >= _DEEPEST:
            return False
        if character == "{" and role != "name":
            self._open.append(_Container(False, "call" if role in ("calls", "call") else "anything"))
            return self._then(self._key_or_end)
        if character == "[" and role in ("calls", "anything"):
            self._open.append(_Container(True, "call" if role == "calls" else "anything"))
            self._role = self._open[-1].role
            return self._then(self._value if role == "calls" else self._value_or_end)
        if character == '"' and role == "arguments":
            self._words = None
            return self._then(self._object_in_string)
        if character == '"' and role in ("name", "anything"):
            return self._string(self._names if role == "name" else None)
        if role != "anything" or character not in "-0123456789tfn":
            return False
        self._word = character
        return self._then(self._literal if character in "tfn" else self._number)

    def _value_or_end(self, character: str) -> bool:
        return self._close(character) if character == "]" else self._value(character)

    def _key_or_end(self, character: str) -> bool:
        return self._close(character) if character == "}" else self._key(character)

    def _key(self, character: str) -> bool:
        if character in _SPACE:
            return True
        return character == '"' and self._string(KEYS if self._open[-1].role == "call" else None)

    def _string(self, words: frozenset[str] | None) -> bool:
        self._word, self._words = "", words
        return self._then(self._in_string)

    def _object_in_string(self, character: str) -> bool:
        return character == " " or (character == "{" and self._then(self._in_string))

    def _in_string(self, character: str) -> bool:
        if character == '"':
            return self._string_end()
        if character < " ":
            return False
        if character == "\\":
            return self._then(self._escape)
        if self._words is None:
            return True
        self._word += character
        if "\\" in self._word:
            return len(self._word) <= _LONGEST
        return any(word.startswith(self._word) for word in self._words)

    def _escape(self, character: str) -> bool:
        if self._words is not None:
            self._word += "\\" + character
            if len(self._word) > _LONGEST:
                return False
        if character == "u":
            self._digits = 4
            return self._then(self._hexadecimal)
        return character in '"\\/bfnrt' and self._then(self._in_string)

    def _hexadecimal(self, character: str) -> bool:
        if self._words is not None:
            self._word += character
        self._digits -= 1
        return character in "0123456789abcdefABCDEF" and (self._digits > 0 or self._then(self._in_string))

    def _string_end(self) -> bool:
        if self._words is not None:
            self._word = json.loads(f'"{self._word}"')
            if self._word not in self._words:
                return False
        container = self._open[-1]
        if not container.is_list and container.key is None:
            container.key = self._word
            container.keys.add(self._word)
            return self._then(self._colon)
        return self._ended()

    def _colon(self, character: str) -> bool:
        if character != ":":
            return character in _SPACE
        container = self._open[-1]
        self._role = _ROLES.get(container.key or "", "anything") if container.role == "call" else "anything"
        return self._then(self._value)

    def _number(self, character: str) -> bool:
        if _NUMBER_BEGIN.fullmatch(self._word + character):
            self._word += character
            return len(self._word) <= _LONGEST
        return bool(_NUMBER.fullmatch(self._word)) and self._ended() and self._step(character)

    def _literal(self, character: str) -> bool:
        self._word += character
        if self._word in _WORDS:
            return self._ended()
        return any(word.startswith(self._word) for word in _WORDS)

    def _ended(self) -> bool:
        """A value is complete."""
        if not self._open:
            self.is_complete = True
            return self._then(str.isspace)
        return self._then(self._after)

    def _after(self, character: str) -> bool:
        if character in _SPACE:
            return True
        container = self._open[-1]
        if character == ",":
            container.key = None
            self._role = container.role
            return self._then(self._value if container.is_list else self._key)
        return self._close(character)

    def _close(self, character: str) -> bool:
        container = self._open[-1]
        if character != ("]" if container.is_list else "}"):
            return character in _SPACE
        self._open.pop()
        if container.role == "call" and not container.is_list and not container.keys.intersection(NAMES):
            return False
        return self._ended()

    def _then(self, step: Callable[[str], bool]) -> bool:
        self._step = step
        return True


def loaded(text: str) -> Any:
    """What the JSON says. Raises ValueError for what is none, such as NaN, and what is too large or deep."""
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if is_deeper(value, _DEEPEST):
        raise ValueError("it is nested too deep")
    return value


def written(value: Any) -> str:
    """Its JSON. Halves of a character that escapes wrote are joined; one alone, which nothing can send,
    becomes U+FFFD."""
    text = json.dumps(value, ensure_ascii=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number in JSON")
    return number
