"""Frames that have begun and are not complete: what strangers make us keep before a message can be judged.

Bytes count from the first one on, in all, by address group and by peer. When there are too many, one frame
ends: of the group and peer that keep most, the one that wastes most, which is its size times the time since
it last grew. A frame that grows more slowly than any line that is of use ends too. Pure: every call brings
``now`` in seconds.
"""

from __future__ import annotations

from collections.abc import Callable

from .shares import Holder, ShareLimits, Shares

MAX_UNFINISHED_BYTES = 128 * 1024 * 1024
"""Bytes of unfinished frames of all peers together: eight of the largest frames."""
GROWTH_WINDOW_S = 30.0
"""A frame that gains nothing within this many seconds is given up. A network may be away for 20 s and come
back."""
MIN_BYTES_PER_S = 4 * 1024
"""A frame must grow at least this fast within each window. At 32 kbit/s no prompt can be prefilled."""


class UnfinishedFrame:
    """The frame that is coming on one stream. ``end`` is called, once, with the reason why it may not go on;
    it ends the stream."""

    __slots__ = ("_all", "_grown_at", "_seen", "_seen_at", "end", "held", "holder")

    def __init__(self, frames: UnfinishedFrames, holder: Holder, end: Callable[[str], None]) -> None:
        self._all = frames
        self.holder = holder
        self.end = end
        self.held = 0
        self._grown_at = self._seen_at = 0.0
        self._seen = 0

    def holds(self, size: int) -> None:
        """``size`` bytes of the frame are here now; 0: it is complete, or the stream has ended."""
        if size != self.held:
            self._all._resized(self, size)


class UnfinishedFrames:
    """The unfinished frames of all streams. ``clock`` gives seconds."""

    def __init__(
        self, clock: Callable[[], float], limits: ShareLimits | None = None, window_s: float = GROWTH_WINDOW_S
    ) -> None:
        self._clock = clock
        self._shares = Shares(limits or ShareLimits(MAX_UNFINISHED_BYTES))
        self._window_s = window_s
        self._frames: set[UnfinishedFrame] = set()

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def held(self) -> int:
        """Bytes."""
        return int(self._shares.held)

    def on_stream(self, holder: Holder, end: Callable[[str], None]) -> UnfinishedFrame:
        """Account for a stream from ``holder``: its frames hold nothing yet."""
        return UnfinishedFrame(self, holder, end)

    def sweep(self) -> None:
        """End the frames that do not grow. Call it every few seconds."""
        now = self._clock()
        for frame in list(self._frames):
            passed = now - frame._seen_at
            enough = frame.held - frame._seen >= MIN_BYTES_PER_S * passed
            if now - frame._grown_at >= self._window_s or (passed >= self._window_s and not enough):
                self._end(frame, f"its frame grew by less than {MIN_BYTES_PER_S} bytes a second")
            elif passed >= self._window_s:
                frame._seen, frame._seen_at = frame.held, now

    def _resized(self, frame: UnfinishedFrame, size: int) -> None:
        before, frame.held = frame.held, size
        now = self._clock()
        if size < before:  # the next frame has begun, or none
            self._shares.give_back(frame.holder, before - size)
            frame._seen, frame._seen_at = size, now
        else:
            if not before:
                frame._seen, frame._seen_at = 0, now
            self._take(frame, size - before, now)
        frame._grown_at = now
        if not frame.held:
            self._frames.discard(frame)
        elif frame.held == size:
            self._frames.add(frame)

    def _take(self, frame: UnfinishedFrame, more: int, now: float) -> None:
        """Count ``more`` bytes of the frame, at the cost of others or of itself."""
        while why := self._shares.take(frame.holder, more):
            loser = self._shares.loser(frame.holder) or frame.holder
            theirs = [each for each in self._frames if each.holder == loser] or [frame]
            worst = max(theirs, key=lambda each: each.held * (now - each._grown_at + 1.0))
            if worst is frame:
                frame.held -= more  # these bytes were not counted
            self._end(worst, f"too much of unfinished frames waits here: {why}")
            if worst is frame:
                return

    def _end(self, frame: UnfinishedFrame, why: str) -> None:
        self._frames.discard(frame)
        if frame.held:
            self._shares.give_back(frame.holder, frame.held)
            frame.held = 0
        frame.end(why)
