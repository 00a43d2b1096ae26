"""Keeps a node's announcement in the directory fresh, for as long as the node lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ..dht.directory import REFRESH_S, Directory
from ..swarm.errors import NetworkError
from ..swarm.types import NodeInfo

log = logging.getLogger(__name__)

RETRY_S = 3.0
"""Seconds before a failed announcement is tried again: many tries fit into one expiry."""
ANNOUNCE_TIMEOUT_S = 15.0
"""A directory that takes longer is treated as failed, so that one stuck call cannot outlive the
announcement."""


class Announcer:
    """Announces ``snapshot()`` at once, every ``refresh_s`` seconds, and whenever ``poke`` says it
    changed."""

    def __init__(
        self, directory: Directory, snapshot: Callable[[], NodeInfo], refresh_s: float = REFRESH_S
    ) -> None:
        self._directory = directory
        self._snapshot = snapshot
        self._refresh_s = refresh_s
        self._changed = asyncio.Event()
        self._announcing = asyncio.Lock()

    def poke(self) -> None:
        """The snapshot differs from what was announced: announce now."""
        self._changed.set()

    async def announce(self) -> bool:
        """Announce once. False if the directory could not be reached: logged, and ``run`` tries again
        soon."""
        async with self._announcing:
            self._changed.clear()
            try:
                async with asyncio.timeout(ANNOUNCE_TIMEOUT_S):
                    await self._directory.announce(self._snapshot())
            except (NetworkError, TimeoutError) as error:
                log.warning("event=announce_failed retry_s=%g error=%r", RETRY_S, str(error))
                return False
            return True

    async def run(self) -> None:
        """Until cancelled. Does not withdraw."""
        while True:
            announced = await self.announce()
            try:
                async with asyncio.timeout(self._refresh_s if announced else min(RETRY_S, self._refresh_s)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def withdraw(self) -> None:
        """Take the announcement back. A directory that cannot be reached forgets it when it expires."""
        async with self._announcing:
            try:
                async with asyncio.timeout(ANNOUNCE_TIMEOUT_S):
                    await self._directory.withdraw()
            except (NetworkError, TimeoutError) as error:
                log.warning("event=withdraw_failed error=%r", str(error))
