"""Text of peers, files and models, made safe to show to people and to write into logs.

A control character that reaches a terminal can move the cursor, recolour or rewrite what was shown, set the
window's title, or type into the shell; a bidirectional override shows a line in another order than it has; a
newline in a log begins a false line. Here each such character becomes a visible one, one by one: so a
sequence that arrives in pieces does not slip through.
"""

from __future__ import annotations

import json
import logging
import re
from types import TracebackType
from typing import Any, Literal

SHOWN = 500
"""At most this many characters of a text are shown in a message."""

_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SURROGATES = range(0xD800, 0xE000)
_PICTURES: dict[int, int] = {
    **{code: 0x2400 + code for code in range(0x20)},
    0x7F: 0x2421,
    **dict.fromkeys((*range(0x80, 0xA0), 0x2028, 0x2029, *_BIDI, *_SURROGATES), 0xFFFD),
}
"""Maps control characters to pictures of them, where Unicode has one. Line separators, bidirectional controls
and lone surrogates become the replacement character."""

_IN_LINES = {code: shown for code, shown in _PICTURES.items() if code not in (0x09, 0x0A)}
_IN_A_LINE = {code: shown for code, shown in _PICTURES.items() if code != 0x09}
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_IN_JSON = re.compile(r"[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")

_Arguments = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def visible(text: str) -> str:
    """``text`` with each control character but tab and newline, and each bidirectional control, as a visible
    character. The same length as ``text``."""
    return text.translate(_IN_LINES) if _UNSAFE.search(text) else text


def visible_line(text: str) -> str:
    """As ``visible``, with newlines visible too: the text can be part of one line."""
    return text.translate(_IN_A_LINE) if "\n" in text or _UNSAFE.search(text) else text


def one_line(text: str) -> str:
    """A text of any length as a part of one line: its first SHOWN characters, as ``visible_line``, with a
    space for each stretch of white space."""
    return visible_line(" ".join(text[:SHOWN].split()))


def exact(text: str) -> str:
    """``text`` as it is, apart from lone surrogates, which no encoding can carry."""
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def json_line(value: object, encoding: str = "utf-8") -> str:
    """``value`` as JSON in one line, where what is unsafe to show is written as ``\\uXXXX``: a reader of JSON
    gets the exact text, and a terminal nothing to obey. If ``encoding`` lacks one of the characters, all that
    is not ASCII is written so."""
    text = json.dumps(value, ensure_ascii=False)
    text = _UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = json.dumps(value).replace("\x7f", "\\u007f")
    return text


class VisibleLogRecord(logging.LogRecord):
    """A log record of one line, whatever its arguments are; a traceback follows it indented. As the factory
    of all records (``logging.setLogRecordFactory``) it also covers what libraries log."""

    def __init__(
        self,
        name: str,
        level: int,
        pathname: str,
        lineno: int,
        msg: object,
        args: Any,
        exc_info: _Arguments | Literal[False] | None,
        func: str | None = None,
        sinfo: str | None = None,
    ) -> None:
        exc_info = exc_info or None  # asyncio says False
        super().__init__(name, level, pathname, lineno, msg, args, exc_info, func, sinfo)
        if exc_info is not None and exc_info[0] is not None:
            lines = logging.Formatter().formatException(exc_info).split("\n")
            self.exc_text = "\n".join(f"  {visible_line(line)}" for line in lines)

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        return visible_line(super().getMessage())
