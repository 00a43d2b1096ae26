"""Who may ask, how often, and how much runs at once."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from os import PathLike
from pathlib import Path

from ...swarm.errors import UsageError
from .errors import ApiError, too_many

MAX_KEYS = 10_000
MAX_CALLERS = 10_000
"""Callers whose rate is remembered; whoever has not been seen for longest is forgotten first."""
SHORTEST_KEY = 8


class ApiKeys:
    """Keys out of a file, one a line; ``#`` begins a comment. Without a file everybody may ask."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = frozenset(map(_digest, keys))

    @classmethod
    def read(cls, path: str | PathLike[str]) -> ApiKeys:
        """Raises UsageError."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problem = getattr(error, "strerror", None) or "it is not UTF-8"
            raise UsageError(f"the API keys in {path} cannot be read: {problem}") from None
        keys = [line for raw in text.splitlines() if (line := raw.split("#")[0].strip())]
        if not keys or len(keys) > MAX_KEYS:
            raise UsageError(f"{path} holds {len(keys)} API keys", hint=f"Write 1 to {MAX_KEYS}, one a line.")
        if short := [key for key in keys if len(key) < SHORTEST_KEY or not key.isascii() or " " in key]:
            raise UsageError(
                f"{path} holds an API key of {len(short[0])} characters that can be none",
                hint=f"Use {SHORTEST_KEY} or more ASCII characters without spaces.",
            )
        return cls(keys)

    @property
    def needed(self) -> bool:
        return bool(self._digests)

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Who asks; None where everybody may. Raises ApiError 401."""
        if not self._digests:
            return None
        words = dict(headers).get(b"authorization", b"").decode("latin-1").split()
        if len(words) == 2 and words[0].lower() == "bearer":
            given = _digest(words[1])
            if given in self._digests:  # how long this takes tells nothing of a key: it is of its digest
                return given.hex()
        raise ApiError(
            401,
            "an API key is needed: send the header Authorization: Bearer KEY"
            if not words
            else "the API key is not one of this gateway's",
            kind="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


class RateLimit:
    """So many requests a minute for each caller, all of them at once if need be; 0 is no limit."""

    def __init__(self, per_minute: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (requests left, when)

    def take(self, caller: str) -> None:
        """Raises ApiError 429."""
        if not self._per_minute:
            return
        now = self._clock()
        left, then = self._left.get(caller, (self._per_minute, now))
        left = min(self._per_minute, left + (now - then) * self._per_minute / 60)
        allowed = left >= 1
        self._left[caller] = (left - 1 if allowed else left, now)
        self._left.move_to_end(caller)
        while len(self._left) > MAX_CALLERS:
            self._left.popitem(last=False)
        if not allowed:
            raise too_many(
                f"more than {self._per_minute:g} requests a minute", (1 - left) * 60 / self._per_minute
            )


class Admission:
    """``most_running``: generations at once; others wait for their turn, in order. ``most_requests``:
    answered or waiting at once; more are refused."""

    def __init__(self, most_running: int, most_requests: int) -> None:
        self.requests = 0
        self.running = 0
        self._most_running = most_running
        self._most_requests = most_requests
        self._waiting: deque[asyncio.Future[None]] = deque()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Raises ApiError 429."""
        if self.requests >= self._most_requests:
            raise too_many(f"{self.requests} requests are being answered; try again soon", 1)
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    @asynccontextmanager
    async def generation(self) -> AsyncIterator[None]:
        if self.running >= self._most_running or self._waiting:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn  # who ends hands its place over
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._end()
                with suppress(ValueError):
                    self._waiting.remove(turn)
                raise
        else:
            self.running += 1
        try:
            yield
        finally:
            self._end()

    def _end(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
