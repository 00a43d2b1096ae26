"""Two machines with one copied identity: both say so, and the one that began later stops.

Other peers see one peer whose record flips between two addresses, so clients fail at random without a visible
reason. The proof is an entry that our own identity has signed and this process has not; strangers cannot make
one.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from ...dht.directory import Directory
from ...dht.namesakes import Namesake
from ...swarm.errors import CopiedIdentityError, SwarmError
from ...swarm.faults import Faults
from .events import Emit

TICK_S = 2.0
"""Seconds between looks at what announcing has shown."""
LOOK_S = 60.0
"""Seconds between looks at the rest: two look-ups more among the dozens that a node makes in that time."""
FIRST_LOOK_S = 15.0
ANSWER_S = 15.0
"""Seconds for an answer of the directory, as for an announcement."""

logger = logging.getLogger(__name__)


class CopyWatch:
    """``identity``: the file; None if there is none. ``emit(event, **details)`` tells of ``copied``, once for
    each other process. ``announce_soon`` is called while there is one, so that the directory holds our
    entry."""

    def __init__(
        self,
        directory: Directory,
        identity: Path | None,
        emit: Emit,
        announce_soon: Callable[[], None],
    ) -> None:
        self.error: CopiedIdentityError | None = None
        """Why this process has to stop."""
        self._directory = directory
        self._identity = identity
        self._emit = emit
        self._announce_soon = announce_soon
        self._told: set[Namesake] = set()
        self._must_stop = asyncio.Event()
        self._faults = Faults("looking for copies of this identity")

    async def must_stop(self) -> None:
        """Waits until this process is the later one of two, then raises CopiedIdentityError."""
        await self._must_stop.wait()
        if self.error is not None:
            raise self.error

    async def run(self) -> None:
        """Until cancelled."""
        look_in_s = FIRST_LOOK_S
        while True:
            await asyncio.sleep(TICK_S)
            look_in_s -= TICK_S
            with self._faults.survived():
                if look_in_s <= 0:
                    look_in_s = LOOK_S
                    await self.look()
                self.judge()

    async def look(self) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._directory.look_for_namesakes()
        except (SwarmError, TimeoutError) as error:
            logger.debug("event=copy_look_failed error=%r", str(error))

    def judge(self) -> None:
        """Tell of those that are seen now, and whether one was before us."""
        own = self._directory.incarnation
        if own is None or self.error is not None:
            return
        for other in self._directory.namesakes:
            if other.incarnation is not None and other.incarnation < own:
                self.error = self._error(other)
                self._must_stop.set()
                return
            self._announce_soon()
            if other not in self._told:
                self._told.add(other)
                self._emit("copied", message=self._message(other), maddrs_of_copy=other.maddrs)

    def _error(self, other: Namesake) -> CopiedIdentityError:
        return CopiedIdentityError(
            f"another machine runs with this node's identity{_since(other)}, {_where(other)}; "
            "this one began later, so it stops",
            hint=f"Its identity file was copied. To give this machine its own, {self._cure()}",
        )

    def _message(self, other: Namesake) -> str:
        later = "That one began later and" if other.incarnation is not None else "The one that began later"
        return (
            f"another machine runs with this node's identity{_since(other)}, {_where(other)}. "
            f"{later} stops by itself; its identity file was copied: there, {self._cure()}"
        )

    def _cure(self) -> str:
        """The identity file has the same name there, if its folder was copied."""
        if self._identity is None:
            return "start with another --identity FILE."
        path = shlex.quote(str(self._identity))
        return f"mv {path} {path}.copied and start again."


def _where(other: Namesake) -> str:
    return f"at {other.maddrs[0]}" if other.maddrs else "at no address that can be dialled"


def _since(other: Namesake) -> str:
    if other.incarnation is None:
        return ""
    return f" since {datetime.fromtimestamp(other.incarnation.since, UTC):%Y-%m-%d %H:%M:%S} UTC"
