"""Bytes that may pass at a bounded rate, divided among those who wait: address groups in turn, in a group its
peers, and slice by slice. Nobody is turned away, as everybody waits with bytes that exist already."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from ..errors import UsageError
from .buckets import Bucket
from .gate import CallLater, Timer
from .queue import FairQueue
from .shares import Holder

AT_ONCE_S = 0.1
"""What was not used in this many seconds may pass at once. A timer that is late by less loses nothing."""
LEAST_AT_ONCE = 8 * 1024
"""Bytes that may always pass at once after a rest: a row of most models waits for nothing."""
SLICE_S = 0.02
"""A peer's turn, in seconds of the whole rate, while others wait."""
LEAST_SLICE = 2 * 1024
"""Bytes of a turn at least."""


class Paced(Protocol):
    """Bytes of one peer that wait to pass, in their order."""

    @property
    def holder(self) -> Holder: ...

    @property
    def waiting(self) -> int:
        """Bytes."""

    def __hash__(self) -> int: ...

    def go(self, most: int) -> None:
        """The next ``most`` of them may pass; ``waiting`` is less by that. Never raises."""


class Pace:
    """``bytes_per_s`` for all together. ``clock`` in seconds; ``call_later`` on it, None: the running event
    loop's."""

    def __init__(
        self,
        bytes_per_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        call_later: CallLater | None = None,
    ) -> None:
        if not bytes_per_s > 0:
            raise UsageError(f"a bandwidth of {bytes_per_s} bytes a second moves nothing")
        self.at_once = max(LEAST_AT_ONCE, int(bytes_per_s * AT_ONCE_S))
        self._slice = max(LEAST_SLICE, int(bytes_per_s * SLICE_S))
        self._clock = clock
        self._call_later = call_later
        self._bucket = Bucket(bytes_per_s, self.at_once, clock())
        self._turns: FairQueue[Paced] = FairQueue()
        self._timer: Timer | None = None

    def enter(self, paced: Paced) -> None:
        """It has bytes that wait: they pass now, or when it is their turn. Idempotent."""
        self._turns.push(paced.holder.peer_id, paced, paced.holder.group)
        if self._timer is None:
            self._release()

    def leave(self, paced: Paced) -> None:
        """It waits no more. Idempotent."""
        self._turns.discard(paced.holder.peer_id, paced, paced.holder.group)

    def close(self) -> None:
        """Nothing that waits passes any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._turns = FairQueue()

    def _release(self) -> None:
        self._timer = None
        while (paced := self._turns.first()) is not None:
            size = min(paced.waiting, self.at_once if len(self._turns) == 1 else self._slice)
            if wait_s := self._bucket.take(size, self._clock()):
                call_later = self._call_later or asyncio.get_running_loop().call_later
                self._timer = call_later(wait_s, self._release)
                return
            self._turns.rotate(paced.holder.peer_id, paced.holder.group)
            paced.go(size)
            if not paced.waiting:
                self.leave(paced)
