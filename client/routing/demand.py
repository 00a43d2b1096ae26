"""Telling the swarm what this client looks for and cannot get, so that idle nodes may load it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ...dht.directory import REFRESH_S, Directory
from ...swarm.errors import SwarmError
from ...swarm.placement.demand import MAX_WANTED, WantedModel
from ...swarm.runtime.tasks import look_at

PAUSE_S = 5.0
"""A client writes at most one record in this many seconds, whatever changes."""
CLOSE_S = 3.0
"""The end of a client waits at most this many seconds until its last record is written."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


class DemandTeller:
    """Keeps this identity's record of demand: written when something is missed, refreshed while it still is,
    taken back once it is found. One for each directory: a record replaces the identity's last.

    A record that is not taken back lives on for a minute: idle nodes may answer a client that did not wait.
    ``clock`` in seconds.
    """

    def __init__(self, directory: Directory, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        self._missed: dict[WantedModel, float] = {}  # → when it was missed last
        self._told: tuple[WantedModel, ...] = ()
        self._told_at = float("-inf")
        self._writing: asyncio.Task[None] | None = None
        self._closed = False

    def miss(self, model: WantedModel) -> None:
        """There is no route through it now; returns at once. Call it again while that is so."""
        self._missed[model] = self._clock()
        self._keep_up()

    def found(self, model: WantedModel) -> None:
        """It is not missed any more."""
        if self._missed.pop(model, None) is not None:
            self._keep_up()

    async def keep(self, work: Awaitable[T]) -> T:
        """The outcome of ``work``, during which nothing that is missed is forgotten."""
        task = asyncio.ensure_future(work)
        task.add_done_callback(look_at)  # it may fail in the turn in which the caller is cancelled
        try:
            while not (await asyncio.wait([task], timeout=PAUSE_S))[0]:
                for model in self._current():
                    self.miss(model)
            return task.result()
        finally:
            if task.cancel():
                await asyncio.wait([task])

    async def close(self) -> None:
        """Wait for what is being written. Takes nothing back."""
        self._closed = True
        if self._writing is not None:
            _, late = await asyncio.wait([self._writing], timeout=CLOSE_S)
            for task in late:
                task.cancel()

    def _current(self) -> tuple[WantedModel, ...]:
        """What is still missed; of too many the latest."""
        now = self._clock()
        self._missed = {model: at for model, at in self._missed.items() if now - at < REFRESH_S}
        latest = sorted(self._missed, key=lambda model: -self._missed[model])[:MAX_WANTED]
        return tuple(sorted(latest, key=str))

    def _keep_up(self) -> None:
        """Write a record if it is time for one."""
        if self._closed or (self._writing is not None and not self._writing.done()):
            return
        current, age = self._current(), self._clock() - self._told_at
        changed = current != self._told
        if (changed and (age >= PAUSE_S or not current)) or (current and age >= REFRESH_S):
            self._writing = asyncio.create_task(self._write(current), name="demand")

    async def _write(self, models: tuple[WantedModel, ...]) -> None:
        self._told, self._told_at = models, self._clock()
        try:
            await self._directory.want(models)
        except SwarmError as error:  # a swarm that takes no demand may still serve
            logger.debug("what is wanted could not be told: %s", error)
        if models and not self._closed and not self._missed:
            await self._write(())  # found meanwhile
