"""Keeps a node's announcement in the directory fresh, for as long as the node lives."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from ...dht.directory import REFRESH_S, Directory
from ...swarm.errors import SwarmError
from ...swarm.faults import Faults
from ...swarm.types import NodeInfo

logger = logging.getLogger(__name__)

RETRY_S = 3.0
"""Seconds before a failed announcement is tried again: many tries fit into one expiry."""
ANNOUNCE_TIMEOUT_S = 15.0
"""A directory that takes longer is treated as failed, so that one stuck call cannot outlive the
announcement."""


EARLY_S = 4.0
"""Least seconds between announcements of a changed load: at most five times the usual traffic."""
LOOK_S = 1.0
"""Seconds between looks at the load: a few comparisons each."""
MUCH_KV = 0.125
"""A change by this part of the KV cache, or of the sessions for which there are states, counts: smaller ones
would not change a route. So does that there are none left, or some again."""
MUCH_QUEUE_MS = 2.0
MUCH_QUEUE_RATIO = 2.0
"""A wait in the queue has changed much if it at least doubled or halved, by at least MUCH_QUEUE_MS."""


def moved_much(told: NodeInfo, current: NodeInfo) -> bool:
    """Whether a route made with what was announced may be a bad one now."""
    if current.links and not told.links:
        return True
    if bool(current.free_states) != bool(told.free_states):
        return True
    for before, free, total in (
        (told.free_kv_tokens, current.free_kv_tokens, current.total_kv_tokens),
        (told.free_states, current.free_states, current.total_states),
    ):
        if abs(free - before) >= max(1, MUCH_KV * total):
            return True
    low, high = sorted((told.queue_ms, current.queue_ms))
    return high - low >= MUCH_QUEUE_MS and high >= MUCH_QUEUE_RATIO * low


def is_due(told: NodeInfo, age_s: float, current: NodeInfo, refresh_s: float) -> bool:
    """Whether to announce ``current``, ``age_s`` seconds after ``told`` was: in time for a refresh, earlier
    when the load moved much or links are measured at last, and never within EARLY_S for these alone."""
    if age_s >= refresh_s:
        return True
    return age_s >= EARLY_S and moved_much(told, current)


class Announcer:
    """Announces ``snapshot()`` at once, every ``refresh_s`` seconds, earlier when its load moved much, and
    whenever ``announce_now`` says it changed. A snapshot of None: there is nothing to announce, what was is
    taken back."""

    def __init__(
        self,
        directory: Directory,
        snapshot: Callable[[], NodeInfo | None],
        refresh_s: float = REFRESH_S,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._snapshot = snapshot
        self._refresh_s = refresh_s
        self._clock = clock
        self._changed = asyncio.Event()
        self._announcing = asyncio.Lock()
        self._faults = Faults("announcing")
        self._is_announced = False

    @property
    def is_announced(self) -> bool:
        """Whether a directory took the last announcement."""
        return self._is_announced

    def announce_now(self) -> None:
        """The snapshot differs from what was announced: announce now."""
        self._changed.set()

    async def announce(self) -> bool:
        """Announce once. False if the directory could not be reached: logged, and ``run`` tries again
        soon."""
        _, done = await self._announce()
        if not done:
            self.announce_now()
        return done

    async def _announce(self) -> tuple[NodeInfo | None, bool]:
        """What was announced, and whether a directory node took it."""
        async with self._announcing:
            self._changed.clear()
            info = self._snapshot()  # here: one that waited for another must not bring older news
            try:
                async with asyncio.timeout(ANNOUNCE_TIMEOUT_S):
                    await (self._directory.withdraw() if info is None else self._directory.announce(info))
            except (SwarmError, TimeoutError) as error:
                logger.warning("event=announce_failed retry_s=%g error=%r", RETRY_S, str(error))
                self._is_announced = False
                return info, False
            except Exception as fault:  # noqa: BLE001 - a node that stopped announcing would be gone
                self._faults.note(fault)
                self._is_announced = False
                return info, False
            self._is_announced = info is not None
            return info, True

    async def run(self) -> None:
        """Until cancelled. Does not withdraw."""
        while True:
            at = self._clock()
            info, done = await self._announce()
            refresh_s = self._refresh_s if done else min(RETRY_S, self._refresh_s)
            while not self._is_due(info, self._clock() - at, refresh_s):
                try:
                    async with asyncio.timeout(min(LOOK_S, refresh_s)):
                        await self._changed.wait()
                    break
                except TimeoutError:
                    continue

    def _is_due(self, told: NodeInfo | None, age_s: float, refresh_s: float) -> bool:
        current = self._snapshot()
        if told is None or current is None:
            return told is not current
        return is_due(told, age_s, current, refresh_s)

    async def withdraw(self) -> None:
        """Take the announcement back. A directory that cannot be reached forgets it when it expires."""
        async with self._announcing:
            try:
                async with asyncio.timeout(ANNOUNCE_TIMEOUT_S):
                    await self._directory.withdraw()
            except (SwarmError, TimeoutError) as error:
                logger.warning("event=withdraw_failed error=%r", str(error))
