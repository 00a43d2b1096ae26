"""A node reads its own announcement back, as others would: an announcement that no other node returns is of
no use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ...dht.directory import Directory
from ...swarm.errors import SwarmError
from ...swarm.faults import Faults
from .events import Emit

READ_BACK_S = 60.0
"""Seconds between two looks: one look-up more among the dozen that a node makes in that time."""
FIRST_S = 5.0
"""Before the first look, and between looks while the swarm does not tell of us."""
ANSWER_S = 15.0
"""Seconds for an answer of the directory, as for an announcement."""

logger = logging.getLogger(__name__)


class ReadBack:
    """``emit(event, **details)`` tells of ``unseen`` and, once it is over, ``seen``. ``announce_soon`` is
    called while the announcement is not seen: the directory then tells more nodes of it."""

    def __init__(self, directory: Directory, emit: Emit, announce_soon: Callable[[], None]) -> None:
        self.seen = True  # as far as we know
        self._directory = directory
        self._emit = emit
        self._announce_soon = announce_soon
        self._faults = Faults("reading our announcement back")

    async def look(self) -> None:
        """Once."""
        try:
            async with asyncio.timeout(ANSWER_S):
                seen = await self._directory.is_announced()
        except (SwarmError, TimeoutError) as error:
            logger.debug("event=read_back_failed error=%r", str(error))
            return
        if seen is False:
            self._announce_soon()
        if seen is not None and seen is not self.seen:
            self.seen = seen
            if seen:
                self._emit("seen")
            else:
                self._emit("unseen", message="other nodes do not return this node's announcement")

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.sleep(FIRST_S)
        while True:
            with self._faults.survived():
                await self.look()
            await asyncio.sleep(READ_BACK_S if self.seen else FIRST_S)
