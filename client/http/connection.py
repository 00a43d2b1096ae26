"""One HTTP connection: uvicorn's, with what its other end may cost bounded before any request is read."""

from __future__ import annotations

import asyncio
import re
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ...swarm.runtime.open_files import RESERVED
from .body import to_json
from .call import ABORT
from .errors import ApiError

HEADER_S = 10.0
"""Seconds for a request's head to arrive, from the connection's beginning or the request's."""
MAX_HEADER_BYTES = 64 * 1024
"""Bytes of a request's head at most, and of what stands between two parts of its body."""
KEEP_ALIVE_S = 30
LINGER_S = 2.0
"""Seconds for which a refused connection is still read: if it were closed at once, the client could lose the
answer. At the server's end the same for one that has nothing more to get: over TLS its other end is waited
for, and may not look before it asks for something."""
_LINE = 4
"""A header takes this many bytes beside its name and value."""
_UPGRADE = re.compile(rb"\r\nupgrade[ \t]*:", re.IGNORECASE)


class HttpConnection(HttpToolsProtocol):
    """``max_connections`` is set by the server. Requests can end their connection at once: ``ABORT``."""

    max_connections = 1024
    ending = False
    """Of the server: there are no new connections."""
    raw: asyncio.Transport | None = None
    """What an encrypted one goes through."""
    _timer: asyncio.TimerHandle | None = None
    _refused = False
    _in_request = False
    _in_head = False
    _progress = False  # a head or a body ended, or a part of a body came, in the data that is being read
    _head_bytes = 0  # of the request's lines and headers
    _raw_bytes = 0  # that came since the last progress

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.ending:
            transport.abort()
        elif len(self.connections) > self.max_connections:
            self._refuse(ApiError(503, "there are too many connections", code="too_many_connections"))
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._stop_timer()
            self._timer = self.loop.call_later(LINGER_S, self._end_if_sent)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[ABORT] = self.transport.abort
        self._in_request = self._in_head = True
        self._head_bytes = self._raw_bytes = 0
        self._await_head()

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Those after a body are not read: they could say again what the request is."""
        self._head_bytes += len(name) + len(value) + _LINE
        if self._in_head and self._head_bytes <= MAX_HEADER_BYTES:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._progress = False, True
        if self._head_bytes > MAX_HEADER_BYTES:
            self._refuse(_too_large_head())
        if self._refused:
            return
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._progress = True
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_request, self._progress = False, True
        if not self._refused:
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._progress = False
        super().data_received(data if self._in_request and not self._in_head else _without_offer(data))
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()  # what came is not a request yet, and ended uvicorn's own waiting
        self._raw_bytes = 0 if self._progress else self._raw_bytes + len(data)
        if self._raw_bytes > MAX_HEADER_BYTES:
            self._refuse(_too_large_head())

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, msg, code="invalid_http"))

    def _await_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEADER_S, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        self.transport.abort()

    def _end_if_sent(self) -> None:
        ways = (self.transport, self.raw)
        if any(way is not None and way.get_write_buffer_size() for way in ways):
            self._timer = self.loop.call_later(LINGER_S, self._end_if_sent)
        else:
            self._too_slow()

    def _refuse(self, error: ApiError) -> None:
        """Answer in place of the request's handler, and close the connection."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._stop_timer()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # its own answer may have begun
            return
        body = to_json(error.body()).encode()
        head = f"HTTP/1.1 {error.status} Refused\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
        self.transport.write(
            f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
        )
        if len(self.connections) > self.max_connections + RESERVED // 2:
            self.transport.close()
            return
        if not self.transport.can_write_eof():  # one that is encrypted
            self.transport.close()
            return
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_S, self._too_slow)


def _without_offer(data: bytes) -> bytes:
    """The beginning of a request, without its offer of another protocol, such as Java's clients make. Nothing
    is taken up here, and the parser would pass over the body."""
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nX-Offered:", head) + end + rest if _UPGRADE.search(head) else data


def _too_large_head() -> ApiError:
    return ApiError(431, f"the request's head is larger than {MAX_HEADER_BYTES} bytes")
