"""Keeps a daemon running: notices that it died, hangs or slept, and puts another in its place."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ...errors import LocalNetworkError, NetworkError, OpenFilesError
from ..interface import NetworkChange, NetworkLost, NetworkRestored, NetworkWatcher

if TYPE_CHECKING:
    from .daemon import P2pDaemon

logger = logging.getLogger(__name__)

PING_EVERY_S = 1.0
HUNG_AFTER_S = 3.0
"""A daemon that does not answer for this many seconds counts as hung. It answers within a millisecond, on a
busy machine later."""
DOUBT_S = 1.0
"""The same in seconds after a peer fell silent, because a peer must not be blamed for our daemon."""
LATE_S = 0.5
"""A time limit that ends this many seconds too late is ignored: this process was stopped, or its machine
slept."""
SLEPT_S = 30.0
"""After a sleep of this many seconds the daemon is replaced. Peers have given up our connections, and the old
daemon takes 40 s to notice. A new one begins with the current addresses and connections."""
SETTLED_S = 10.0
"""A daemon that lived for this many seconds did not die because of how it was started."""
MOST_DEATHS = 5
"""After this many daemons in a row that did not live SETTLED_S, another would not help."""
BACK_OFF_S = 0.5
"""Seconds before the second start in a row, doubled with each further one. The first follows at once."""
TOLD_AGAIN_S = 60.0
"""Seconds after which it is said again that this process has too many open files."""


def steady_clock() -> float:
    """A clock in seconds that also runs while the machine sleeps, and that cannot be set."""
    # On macOS CLOCK_MONOTONIC counts sleep; on Linux it does not.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class DaemonSupervisor:
    """``ping`` asks the daemon something that costs nothing, ``settle`` brings a new one into the network.

    Both may raise NetworkError. ``run`` keeps the daemon until it is cancelled or gives up.
    """

    def __init__(
        self,
        daemon: P2pDaemon,
        ping: Callable[[], Awaitable[None]],
        settle: Callable[[], Awaitable[None]],
        *,
        clock: Callable[[], float] = steady_clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._daemon = daemon
        self._ping = ping
        self._settle = settle
        self._clock = clock
        self._sleep = sleep
        self._watchers: list[NetworkWatcher] = []
        self._lost_at: float | None = None

    def watch(self, watcher: NetworkWatcher) -> None:
        self._watchers.append(watcher)

    async def run(self) -> LocalNetworkError:
        """Returns what to tell people when it gave up."""
        deaths = 0
        while True:
            began = self._clock()
            error: NetworkError = await self._lost()
            deaths = deaths + 1 if self._clock() - began < SETTLED_S else 1
            logger.warning("%s; starting it again", error.message)
            if self._lost_at is None:
                self._lost_at = self._clock()
                await self._tell(NetworkLost(error.message))
            while True:
                if deaths >= MOST_DEATHS:
                    return self._give_up(error)
                if deaths > 1:
                    await self._sleep(BACK_OFF_S * 2.0 ** (deaths - 2))
                try:
                    await self._daemon.restart()
                except NetworkError as failure:
                    logger.warning("%s", failure.message)
                    error, deaths = failure, deaths + 1
                else:
                    break

    async def check(self) -> None:
        """Raises LocalNetworkError if there is no daemon now, or if it does not answer within DOUBT_S; it is
        then replaced."""
        if not self._daemon.is_up:
            raise LocalNetworkError("the libp2p daemon (p2pd) of this process is being started again")
        try:
            answers = await self._answers(DOUBT_S)
        except OpenFilesError as error:
            raise LocalNetworkError(error.message, hint=error.hint) from None
        if not answers:
            because = f"did not answer for {DOUBT_S:g} s and was replaced"
            self._daemon.kill(because)
            raise LocalNetworkError(f"the libp2p daemon (p2pd) of this process {because}")

    async def _lost(self) -> LocalNetworkError:
        """Bring the daemon into the network and watch it until it is lost for any reason."""
        ended = asyncio.ensure_future(self._daemon.ended())
        tasks = [ended, asyncio.ensure_future(self._watch()), asyncio.ensure_future(self._restored())]
        try:
            while not ended.done():
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                tasks = [task for task in tasks if task not in done]
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return ended.result()

    async def _restored(self) -> None:
        if self._lost_at is None:
            return
        try:
            await self._settle()
        except NetworkError as error:
            logger.warning("the daemon is back, but no peer is connected yet: %s", error.message)
        await self._tell(NetworkRestored(self._clock() - self._lost_at))
        self._lost_at = None

    async def _watch(self) -> None:
        """Until the daemon had to be killed."""
        told_at = -math.inf
        while True:
            before = self._clock()
            await self._sleep(PING_EVERY_S)
            try:
                answers = await self._answers(HUNG_AFTER_S)
            except OpenFilesError as error:
                if self._clock() - told_at > TOLD_AGAIN_S:
                    told_at = self._clock()
                    logger.warning("event=open_files_short message=%r", error.message)
                continue
            except NetworkError as error:
                logger.debug("%s", error.message)
                await self._sleep(PING_EVERY_S)  # a daemon that ended ends this wait, and says so better
                self._daemon.kill("could not be asked any more")
                return
            if not answers:
                self._daemon.kill(f"did not answer for {HUNG_AFTER_S:g} s and was replaced")
                return
            slept = self._clock() - before - PING_EVERY_S
            if slept > SLEPT_S:
                self._daemon.kill(f"was replaced, since this computer slept for {slept:.0f} s")
                return

    async def _answers(self, within_s: float) -> bool:
        while True:
            began = self._clock()
            try:
                async with asyncio.timeout(within_s):
                    await self._ping()
            except TimeoutError:
                if self._clock() - began > within_s + LATE_S:
                    continue
                return False
            return True

    async def _tell(self, change: NetworkChange) -> None:
        for watcher in self._watchers:
            try:
                await watcher(change)
            except NetworkError as error:
                logger.warning("%s", error.message)
            except Exception:
                logger.exception("a watcher of the network failed")

    def _give_up(self, error: NetworkError) -> LocalNetworkError:
        final = LocalNetworkError(
            f"{MOST_DEATHS} libp2p daemons (p2pd) of this process ended one after the other; the last: "
            f"{error.message}",
            hint="See what they say with --log-level debug, and whether something here ends them.",
        )
        self._daemon.give_up(final)
        return final
