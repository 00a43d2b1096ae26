"""Which callers may ask, by which name of this computer, how often, and how much runs at once."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from os import PathLike

from ...swarm.errors import UsageError
from ...swarm.fairness.buckets import Buckets
from ...swarm.fairness.recent import RecentMap
from ...swarm.runtime.given_files import read_given
from .errors import ApiError, too_many

MAX_KEYS = 10_000
MAX_KEYS_BYTES = 1024 * MAX_KEYS
"""Bytes of their file at most, comments included."""
MAX_CALLERS = 10_000
"""Callers whose rate is remembered. The one that was seen the longest ago is forgotten first."""
SHORTEST_KEY = 8
SPARE_REQUESTS = 64
"""This many places are kept for requests of other callers, so that one caller cannot take all places."""


class ApiKeys:
    """Keys from a file, one a line; ``#`` begins a comment. Without a file every caller may ask."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = frozenset(map(_digest, keys))

    @classmethod
    def read(cls, path: str | PathLike[str]) -> ApiKeys:
        """Raises UsageError."""
        try:
            text = read_given(path, MAX_KEYS_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            problem = getattr(error, "strerror", None) or "it is not UTF-8"
            raise UsageError(
                f"the API keys in {path} cannot be read: {problem}",
                hint="Give a text file with one key a line.",
            ) from None
        keys = [line for raw in text.splitlines() if (line := raw.split("#")[0].strip())]
        if not keys or len(keys) > MAX_KEYS:
            raise UsageError(f"{path} holds {len(keys)} API keys", hint=f"Write 1 to {MAX_KEYS}, one a line.")
        if short := [key for key in keys if len(key) < SHORTEST_KEY or not key.isascii() or " " in key]:
            raise UsageError(
                f"{path} holds an API key of {len(short[0])} characters that is not possible",
                hint=f"Use {SHORTEST_KEY} or more ASCII characters without spaces.",
            )
        return cls(keys)

    @property
    def needed(self) -> bool:
        return bool(self._digests)

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """The caller's key; None if every caller may ask. Raises ApiError 401."""
        if not self._digests:
            return None
        told = dict(headers)
        kind, _, word = told.get(b"authorization", b"").decode("latin-1").strip().partition(" ")
        bearer = word.strip() if kind.lower() == "bearer" else ""
        for key in (bearer, told.get(b"x-api-key", b"").decode("latin-1").strip()):
            given = _digest(key)
            if given in self._digests:  # how long this takes tells nothing of a key: it is of its digest
                return given.hex()
        raise ApiError(
            401,
            "the API key is not one of this gateway's"
            if kind or b"x-api-key" in told
            else "an API key is needed: send the header Authorization: Bearer KEY, or x-api-key: KEY",
            kind="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


class RequestRate:
    """``per_minute`` requests of each caller, which may come all at once; 0 is no limit."""

    def __init__(self, per_minute: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._buckets = Buckets(per_minute / 60, per_minute, MAX_CALLERS)
        self._clock = clock

    def take(self, caller: str) -> None:
        """Raises ApiError 429."""
        if not self._per_minute:
            return
        now = self._clock()
        if wait_s := self._buckets.of(caller, now).take(1, now):
            raise too_many(f"more than {self._per_minute:g} requests a minute", wait_s)


class GatewayAdmission:
    """``most_running``: generations at once; others wait for their turn. ``most_requests``: answered or
    waiting at once; more are refused, except SPARE_REQUESTS of callers that have less than an equal part.
    Callers take turns: next is the one with the fewest running, and of these the one that had no turn for
    longest."""

    def __init__(self, most_running: int, most_requests: int) -> None:
        self.running = 0
        self._most_running = most_running
        self._most_requests = most_requests
        self._requests: Counter[str] = Counter()  # by caller
        self._running: Counter[str] = Counter()
        self._waiting: dict[asyncio.Future[None], str] = {}  # whose turn is to come, in order
        # Of callers who have been waiting, the last turn's number: who is forgotten had none for longest.
        self._turns: RecentMap[str, int] = RecentMap(MAX_CALLERS)
        self._taken = 0  # turns

    @property
    def requests(self) -> int:
        return self._requests.total()

    @property
    def waiting(self) -> int:
        """Generations whose turn is to come."""
        return len(self._waiting)

    @contextmanager
    def request(self, caller: str = "") -> Iterator[None]:
        """Raises ApiError 429."""
        requests, own = self.requests, self._requests[caller]
        part = self._most_requests / (len(self._requests) + 1)
        most = self._most_requests + SPARE_REQUESTS * (bool(self._requests) and own < part and own < requests)
        if requests >= most:
            raise too_many(f"{requests} requests are being answered; try again soon", 1)
        self._requests[caller] += 1
        try:
            yield
        finally:
            _less(self._requests, caller)

    @asynccontextmanager
    async def generation(self, caller: str = "") -> AsyncIterator[None]:
        if self.running >= self._most_running or self._waiting:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[turn] = caller
            try:
                await turn  # a request that ends hands its place over
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._end(caller)
                self._waiting.pop(turn, None)
                raise
        else:
            self.running += 1
            self._running[caller] += 1
        try:
            yield
        finally:
            self._end(caller)

    def _end(self, caller: str) -> None:
        _less(self._running, caller)
        turns = [turn for turn in self._waiting if not turn.done()]
        if not turns:
            self.running -= 1
            self._turns.clear()
            return

        def order(turn: asyncio.Future[None]) -> tuple[int, int]:
            whose = self._waiting[turn]
            return self._running[whose], self._turns.get(whose, 0)

        turn = min(turns, key=order)  # of equals the first
        whose = self._waiting.pop(turn)
        self._running[whose] += 1
        self._taken += 1
        self._turns[whose] = self._taken
        turn.set_result(None)


def _less(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


_HOST = re.compile(r"(?P<name>[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{0,5}))?", re.IGNORECASE)
LOCAL_NAMES = frozenset({"localhost", "localhost."})


def check_host(headers: Iterable[tuple[bytes, bytes]], http_version: str) -> None:
    """Raises ApiError where the request does not call this computer by a local name. HTTP/1.0 may call it by
    none: health checks do, and no browser.

    A web page elsewhere can have a name of its own lead here, and then ask as if it were at home. It cannot
    choose what its browser writes into ``Host``: that is its own name.
    """
    hosts = [value for name, value in headers if name == b"host"]
    if not hosts and http_version == "1.0":
        return
    if len(hosts) != 1:
        problem = "more than one header" if hosts else "no header"
        raise ApiError(400, f"the request has {problem} Host", code="invalid_host")
    host = hosts[0].decode("latin-1")
    if not is_local(host):
        raise ApiError(
            403,
            "this gateway answers to localhost, 127.0.0.1 and [::1] only, not to "
            f"{host[:200]!r}; with --api-key-file it answers to any name",
            code="wrong_host",
        )


def is_local(host: str) -> bool:
    """Whether the value of a ``Host`` header, port or not, is a name that only leads to this computer."""
    found = _HOST.fullmatch(host.strip())
    if found is None or int(found["port"] or 0) > 65535:
        return False
    name = found["name"].lower()
    if name in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback and (":" in name) == name.startswith("[")
    except ValueError:
        return False
