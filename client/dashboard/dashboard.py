"""The live state of a swarm: read from its directory, kept for some hours, and told to whoever watches.

The directory is read often while somebody watches and seldom otherwise, so that a dashboard that nobody looks
at costs next to nothing. Watchers share one state, which is made and compared once a tick.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

from ...dht.directory import Directory
from ...swarm.errors import SwarmError
from ...swarm.runtime.tasks import end
from ..http.body import to_json
from ..http.errors import said, too_many
from .changes import changes
from .history import COLUMNS, STEP_S, History
from .picture import CAUSE_CHARS, Complete, Reading, State, own_sections, swarm_sections, text
from .source import Source

TICK_S = 1.0
"""Seconds between two changes that watchers are told of."""
WATCHED_S = 2.0
"""Seconds between readings of the directory while somebody watches or asks."""
UNWATCHED_S = 20.0
"""The same otherwise: as often as nodes announce themselves."""
NODES_PER_S = 200
"""A large swarm is read less often: at most so many nodes a second, some hundredths of a core."""
KEEP_ALIVE_S = 10.0
"""Seconds after which a watcher hears something although nothing changed: proxies end silent connections."""
MOST_WATCHERS = 64
MOST_OF_ONE_CALLER = 32

logger = logging.getLogger(__name__)


class Dashboard:
    """``async with`` reads and keeps the history. ``name``: the swarm's. ``complete``: see ``picture``.
    ``has_chat``: whether the chat page is beside it. ``clock``: seconds of Unix time."""

    def __init__(
        self,
        directory: Directory,
        source: Source,
        *,
        complete: Complete,
        name: str = "",
        has_chat: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._source = source
        self._complete = complete
        self._clock = clock
        self._about = {
            "name": text(name, CAUSE_CHARS),
            "has_chat": has_chat,
            "columns": COLUMNS,
            "start": complete("swarm-node serve --model SmolLM2-135M-Instruct"),
        }
        self._history = History()
        self._reading = Reading()
        self._sections: dict[str, dict[str, Any]] | None = None  # of the reading, once somebody looks
        self._problem = "Asking the swarm who serves what ..."
        self._sampled_at = float("-inf")
        self._state: State = {}
        self._version = 0
        self._whole: str | None = None  # the state as JSON, once somebody needs it
        self._changes = ""
        self._changed = asyncio.Event()
        self._watchers: Counter[str] = Counter()
        self._asked = asyncio.Event()  # since the directory was read
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._keep_reading(), name="dashboard-reading"),
            asyncio.create_task(self._keep_telling(), name="dashboard-telling"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await end(*self._tasks)

    def close(self) -> None:
        """End what watchers are being told. Idempotent."""
        self._closed = True
        self._wake_watchers()

    def whole(self) -> str:
        """All of the state, as JSON."""
        self._asked.set()
        self._look()
        return self._as_json()

    async def events(self, caller: str) -> AsyncGenerator[str, None]:
        """Server-sent events: the whole state, and then what changes. Raises ApiError 429 before the first
        one where too many watch."""
        with self._watching(caller):
            self._look()
            seen = -1
            while not self._closed:
                if seen == self._version:
                    yield await self._next_change()
                    continue
                is_next = seen == self._version - 1
                seen = self._version
                yield self._changes if is_next else _event("state", self._as_json())

    @contextmanager
    def _watching(self, caller: str) -> Iterator[None]:
        if self._watchers.total() >= MOST_WATCHERS or self._watchers[caller] >= MOST_OF_ONE_CALLER:
            raise too_many("too many browsers watch this dashboard; close some", 5)
        self._asked.set()
        self._watchers[caller] += 1
        try:
            yield
        finally:
            self._watchers[caller] -= 1
            self._watchers += Counter()  # drops those at zero

    async def _next_change(self) -> str:
        """Nothing at a change; a comment after KEEP_ALIVE_S without one."""
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                await self._changed.wait()
        except TimeoutError:
            return ": still here\n\n"
        return ""

    def _as_json(self) -> str:
        if self._whole is None:
            self._whole = to_json(self._state)
        return self._whole

    def _look(self) -> None:
        """Make the state anew, and tell what changed."""
        now, source = self._clock(), self._source
        own = own_sections(source.answers(), source.repairs(), source.counters(), source.own(), now)
        if self._sections is None:
            self._sections = swarm_sections(self._reading, self._complete)
        about = {**self._about, **self._sections["swarm"], "problem": self._problem}
        state = {**self._sections, **own, "swarm": about, "history": dict(self._history.items)}
        difference = changes(self._state, state)
        if difference:
            self._state, self._whole = state, None
            self._version += 1
            self._changes = _event("changes", to_json(difference))
            self._wake_watchers()

    def _wake_watchers(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _keep_telling(self) -> None:
        while True:
            try:
                self._sample()
                if self._watchers:
                    self._look()
            except Exception:  # the next tick may do better, and nobody would notice that there is none
                logger.exception("event=dashboard_telling_failed")
            await asyncio.sleep(TICK_S)

    def _sample(self) -> None:
        """Note what is now, every STEP_S."""
        now = self._clock()
        if now - self._sampled_at >= STEP_S and not self._problem:
            self._sampled_at = now
            self._history.note(now, self._reading.nodes, self._source.counters())

    async def _keep_reading(self) -> None:
        while True:
            self._asked.clear()
            try:
                await self._read()
            except SwarmError as error:
                self._problem = text(said(error), CAUSE_CHARS)
            except Exception:
                logger.exception("event=dashboard_reading_failed")
                self._problem = "The directory could not be read; the log says more."
            await asyncio.sleep(max(WATCHED_S, len(self._reading.nodes) / NODES_PER_S))
            if not self._watchers:
                with suppress(TimeoutError):
                    async with asyncio.timeout(UNWATCHED_S - WATCHED_S):
                        await self._asked.wait()

    async def _read(self) -> None:
        """Raises SwarmError."""
        directory = self._directory
        nodes, wanted = await directory.all_nodes(), await directory.wanted()
        self._reading = Reading(nodes, wanted, directory.left_out, directory.is_alone)
        self._sections = None
        self._problem = ""


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"
