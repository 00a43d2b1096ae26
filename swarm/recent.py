"""How often something happened lately, by name: events of a sliding window. Pure: ``now`` in seconds."""

from __future__ import annotations

from collections import OrderedDict, deque


class RecentEvents:
    """``window_s``: how long an event counts. ``max_names``: remembered; above it, the one whose last event
    is the oldest is forgotten."""

    __slots__ = ("_events", "_max_names", "_window_s")

    def __init__(self, window_s: float, max_names: int) -> None:
        self._window_s = window_s
        self._max_names = max_names
        self._events: OrderedDict[str, deque[float]] = OrderedDict()  # the one added to last at the end

    def __len__(self) -> int:
        """Names."""
        return len(self._events)

    def count(self, name: str, now: float) -> int:
        events = self._events.get(name)
        if events is None:
            return 0
        while events and now - events[0] >= self._window_s:
            events.popleft()
        if not events:
            del self._events[name]
        return len(events)

    def add(self, name: str, now: float) -> None:
        self._events.setdefault(name, deque()).append(now)
        self._events.move_to_end(name)
        if len(self._events) > self._max_names:
            self._events.popitem(last=False)

    def take_back(self, name: str) -> None:
        """The last event of this name does not count after all."""
        events = self._events.get(name)
        if events:
            events.pop()
            if not events:
                del self._events[name]
