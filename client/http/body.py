"""Bodies in JSON: a request's, bounded in bytes and in nesting, and a reply's."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, NoReturn, TypeVar

from ...shards.formats.bounded_json import is_deeper
from .errors import ApiError, wrong
from .reading import Reading

MAX_DEPTH = 64
"""At most this many objects and lists may be nested. No honest request comes near, and templates and schemas
recurse."""

MAX_CONTAINERS = 2**16
"""Objects and lists in a body. Python's garbage collector looks at all of them again and again while they are
made: 700,000 fit into two megabytes, and hold the interpreter for a second."""
MAX_NAMES = 2**16
"""Names in a body's objects. json.loads keeps the interpreter, and takes up to 0.7 ms for a thousand."""
MAX_VALUES = 2**19
"""Values in a body: some ten milliseconds where they are numbers, such as token ids."""
MAX_SHOWN = 40
"""An error shows at most this many characters of a name."""
_LONG_NUMBER = b"0" * 64
"""Digits that take long to read: the time grows with the square of their number."""
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+', re.DOTALL)
T = TypeVar("T")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


def to_json(value: object) -> str:
    """ASCII only, so that nothing a model or a stranger wrote breaks a line or a header."""
    return _encode(value)


class ClientGoneError(Exception):
    """The client has left before its answer."""


async def read_json(
    headers: Iterable[tuple[bytes, bytes]],
    receive: Receive,
    max_bytes: int,
    read: Callable[[Any], T],
    reading: Reading,
) -> T:
    """What ``read`` makes of the body as JSON, beside the event loop where that may take long. Raises
    ApiError (400, 413, 415, 429), what ``read`` raises, and ClientGoneError."""
    told = dict(headers)
    # Browsers send any other type to any address without asking first: a strange web page could use up
    # this gateway. They say with every POST where it is from; programs that name no type do not.
    kind = told.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json" and (b"origin" in told or b"sec-fetch-site" in told):
        raise ApiError(415, "the request needs the header Content-Type: application/json")
    if (encoding := told.get(b"content-encoding", b"").strip().lower()) not in (b"", b"identity"):
        shown = encoding.decode("latin-1")[:40]
        raise ApiError(
            415,
            f"the body is encoded as {shown!r}; send it as it is, without Content-Encoding",
            code="unsupported_encoding",
            headers={"Accept-Encoding": "identity"},
        )
    length = told.get(b"content-length", b"")
    if length.isdigit() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)
    parts = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts += message.get("body", b"")
        more = message.get("more_body", False)
        if len(parts) > max_bytes:
            raise _too_large(max_bytes)
        reading.holds(len(parts))
    data = bytes(parts)
    return await reading.parsed(lambda: read(parse_json(data)))


def parse_json(data: bytes) -> Any:
    """Raises ApiError 400 for a body that is not JSON, nested too deep, or of too many parts."""
    if _too_many(data) and (what := _too_many(_outside_strings(data))):
        raise wrong("", f"holds over {what}", code="invalid_json")
    try:
        # A function of Python's own lets other threads go on between long numbers.
        parse_int = _integer if _LONG_NUMBER in data.translate(_DIGITS) else None
        value = json.loads(
            data.decode(), parse_constant=_no_number, parse_int=parse_int, object_pairs_hook=_object
        )
    except UnicodeDecodeError as error:
        raise wrong("", f"is not UTF-8 (byte {error.start})", code="invalid_json") from None
    except json.JSONDecodeError as error:
        problem = f"is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        raise wrong("", problem, code="invalid_json") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise wrong(
            "", "is not JSON: it holds NaN, Infinity or a number of too many digits", code="invalid_json"
        ) from None
    if is_deeper(value, MAX_DEPTH):
        raise _too_deep()
    return value


def _too_many(data: bytes) -> str:
    """What it has too many of; characters in strings are counted too."""
    if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:
        return f"{MAX_CONTAINERS} objects and lists"
    if data.count(b":") > MAX_NAMES:
        return f"{MAX_NAMES} names of values"
    return f"{MAX_VALUES} values" if data.count(b",") > MAX_VALUES else ""


def _outside_strings(data: bytes) -> bytes:
    """One match at a time, so that other threads go on between them."""
    rest, at = bytearray(), 0
    for string in _STRING.finditer(data):
        rest += data[at : string.start()]
        at = string.end()
    return bytes(rest + data[at:])


def _integer(digits: str) -> int:
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses two values with one name: one would be without effect, and a filter before the gateway may have
    checked the other."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise wrong("", f"has {twice[:MAX_SHOWN]!r} more than once in one object", code="invalid_json")
    return values


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)


def _too_deep() -> ApiError:
    return wrong("", f"is nested deeper than {MAX_DEPTH} levels", code="invalid_json")


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the request is larger than {max_bytes} bytes",
        code="request_too_large",
        headers={"Connection": "close"},  # a client that reads answers while it sends need not send the rest
    )
