"""One HTTP request and its reply, over ASGI: JSON, or a stream of events that begins with its first event."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, NoReturn, TypeVar

from .body import ClientGoneError, Receive, read_json, to_json
from .errors import ApiError
from .form import ReplyForm
from .reading import Reading

ABORT = "swarm_node.abort"
"""The ASGI scope's key of a function that ends the connection at once, even if data is still to be sent."""
BODY_S = 30.0
"""Seconds for a request's body to arrive."""
LEFT_BYTES, LEFT_S = 64 * 2**20, 10.0
"""Bytes that are still read of an unwanted body, and seconds for it. Most clients look for an answer only
after they have sent all, and a closed connection would take the answer from them."""

T = TypeVar("T")
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Scope = MutableMapping[str, Any]


class HttpCall:
    """``stall_s``: how long a reader may take nothing before the connection is given up. ``form``: of errors
    and streams."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, stall_s: float, form: ReplyForm | None = None
    ) -> None:
        self.scope = scope
        self.status = 0
        """The reply's status; 0 before it began."""
        self.failure: ApiError | None = None
        """What was told to have gone wrong."""
        self.notes: dict[str, object] = {}
        """What its line in the log says beside."""
        self.routine = False
        """It is asked again and again, by a program that watches: not worth a line."""
        self.streaming = False
        self._receive = receive
        self._send = send
        self._stall_s = stall_s
        self._form = form or ReplyForm()
        self.tell_failure = self._form.failure
        """What ends a stream that failed."""
        told = dict(scope["headers"])
        self._body_left = b"transfer-encoding" in told or told.get(b"content-length", b"0") != b"0"
        self._unasked = told.get(b"expect", b"").lower() == b"100-continue"  # it sends once it is read from
        self._loop = asyncio.get_running_loop()
        self._sending_since: float | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._gave_up = False

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return self.scope["headers"]

    @property
    def pulse(self) -> str:
        """What a stream says while there is nothing to say."""
        return self._form.pulse

    async def read(self, max_bytes: int, read: Callable[[Any], T], reading: Reading) -> T:
        """What ``read`` makes of the body. Raises ApiError and ClientGoneError."""
        try:
            async with asyncio.timeout(BODY_S):
                return await read_json(self.headers, self._receive_part, max_bytes, read, reading)
        except TimeoutError:
            self._body_left = False  # it has been waited for
            raise ApiError(
                408, f"the request did not arrive within {BODY_S:.0f} s", headers={"Connection": "close"}
            ) from None

    async def until_gone(self) -> NoReturn:
        """Wait until the client has hung up, or has all of the reply. Raises ClientGoneError."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        raise ClientGoneError

    async def reply(self, text: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """A JSON text as the whole reply."""
        body = text.encode()
        told = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        if self._body_left and self._unasked:
            self._body_left = False
            told["Connection"] = "close"
        await self._start(status, told)
        if self._body_left:
            await self._put(body, more=True)
            await self._take_the_rest()
            body = b""
        await self._put(body, more=False)

    async def reply_unchanged(self, headers: Mapping[str, str]) -> None:
        """304: what the client has is as it was."""
        await self._start(304, headers)
        await self._put(b"", more=False)

    async def begin_events(self, headers: Mapping[str, str]) -> None:
        self.streaming = True
        told = {
            "Content-Type": self._form.stream_type,
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",  # proxies would hold events back
            **headers,
        }
        await self._start(200, told)

    async def send_events(self, text: str) -> None:
        await self._put(text.encode(), more=True)

    async def end_events(self, text: str = "") -> None:
        await self._put(text.encode(), more=False)

    async def fail(self, error: ApiError) -> None:
        """Tell of an error, as status and body, or in a stream as its last event."""
        self.failure = error
        if self.streaming:
            await self.end_events(self.tell_failure(error))
        elif not self.status:
            await self.reply(to_json(self._form.error(error)), status=error.status, headers=error.headers)

    def close(self) -> None:
        """Nothing more will be sent."""
        if self._watchdog is not None:
            self._watchdog.cancel()

    async def _receive_part(self) -> MutableMapping[str, Any]:
        self._unasked = False
        message = await self._receive()
        self._body_left = self._body_left and bool(message.get("more_body"))
        return message

    async def _take_the_rest(self) -> None:
        """Read the rest of an unwanted body."""
        taken = 0
        try:
            async with asyncio.timeout(LEFT_S):
                while self._body_left and taken <= LEFT_BYTES:
                    taken += len((await self._receive_part()).get("body", b""))
        except TimeoutError:
            pass
        if self._body_left and ABORT in self.scope:
            self.scope[ABORT]()

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        await self._within({"type": "http.response.start", "status": status, "headers": encoded(headers)})

    async def _put(self, body: bytes, *, more: bool) -> None:
        await self._within({"type": "http.response.body", "body": body, "more_body": more})

    async def _within(self, message: dict[str, Any]) -> None:
        """Send; raises ClientGoneError where the reader took nothing for too long."""
        self._sending_since = self._loop.time()
        if self._watchdog is None:
            self._watch_reader()
        await self._send(message)
        self._sending_since = None
        if self._gave_up:
            raise ClientGoneError

    def _watch_reader(self) -> None:
        """One timer a reply: a timeout around each token's event costs more than the event."""
        since = self._sending_since
        waited = 0.0 if since is None else self._loop.time() - since
        if waited < self._stall_s:
            self._watchdog = self._loop.call_later(self._stall_s - waited, self._watch_reader)
            return
        self._gave_up = True
        if ABORT in self.scope:
            self.scope[ABORT]()  # which ends the sending, too


def encoded(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    items = headers.items() if isinstance(headers, Mapping) else headers
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in items]
