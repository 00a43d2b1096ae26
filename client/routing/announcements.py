"""What the directory says of the nodes of one model: the last reading, and when to read again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ...dht.directory import Directory
from ...swarm.errors import SwarmError
from ...swarm.faults import Faults
from ...swarm.runtime.tasks import look_at
from ...swarm.types import ModelRef, NodeInfo

LOOK_AGAIN_S = 2.5
UNSETTLED_S = 12.0
"""For this many seconds after a failure the directory is read every LOOK_AGAIN_S: the node that takes the
place of a lost one comes soon, and is best known before it is needed."""


class Announcements:
    """The announcements of one model. ``nodes``: as last read. ``on_read`` is called after each reading that
    succeeded. ``clock`` gives seconds. ``close`` ends what still reads."""

    def __init__(
        self,
        directory: Directory,
        model: ModelRef,
        *,
        clock: Callable[[], float],
        faults: Faults,
        on_read: Callable[[list[NodeInfo], float], None],
    ) -> None:
        self.nodes: list[NodeInfo] = []
        self._directory = directory
        self._model = model
        self._now = clock
        self._faults = faults
        self._on_read = on_read
        self._read_at: float | None = None
        self._reading: asyncio.Task[None] | None = None
        self._look_again: asyncio.TimerHandle | None = None
        self._unsettled_until = float("-inf")

    def of(self, peer_id: str) -> NodeInfo | None:
        """The announcement of one peer."""
        return next((node for node in self.nodes if node.peer_id == peer_id), None)

    async def within(self, max_age_s: float) -> list[NodeInfo]:
        """Announcements read at most ``max_age_s`` ago. Older ones where the directory cannot be reached:
        peers may well be there while it is not."""
        if self._read_at is None or self._now() - self._read_at > max_age_s or max_age_s == 0:
            # Shielded: that one session is cancelled must not cost the others their read.
            await asyncio.shield(self.refresh())
        return self.nodes

    def refresh_after(self, max_age_s: float) -> None:
        """Begin to read again if the last reading is older, so that the next to ask need not wait."""
        if self._read_at is not None and self._now() - self._read_at > max_age_s:
            self.refresh()

    @property
    def is_reading(self) -> bool:
        return self._reading is not None and not self._reading.done()

    def refresh(self) -> asyncio.Task[None]:
        """Read the directory: the read under way, or a new one."""
        if self._reading is None or not self.is_reading:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(look_at)
        return self._reading

    def unsettled(self) -> None:
        """A node was lost: read now, and again and again for a while."""
        self.refresh()
        self._unsettled_until = self._now() + UNSETTLED_S
        if self._look_again is None:
            self._look_again = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._refresh_again)

    async def close(self) -> None:
        if self._look_again is not None:
            self._look_again.cancel()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    def _refresh_again(self) -> None:
        self._look_again = None
        self.refresh()
        if self._now() < self._unsettled_until:
            self._look_again = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._refresh_again)

    async def _read(self) -> None:
        try:
            self.nodes = await self._directory.nodes(self._model)
        except SwarmError:
            if not self.nodes:
                raise
            return
        except Exception as fault:
            if not self.nodes:
                raise
            self._faults.note(fault)
            return
        self._read_at = self._now()
        self._on_read(self.nodes, self._read_at)
