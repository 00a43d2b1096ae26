"""Bounded memories, as names cost strangers nothing: the latest values by name, and how often something
happened in a sliding window. Pure: ``now`` in seconds."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)
Value = TypeVar("Value")


class RecentMap(OrderedDict[Name, Value]):
    """The ``most`` names that were set last, the latest at the end. Setting one more forgets the one that was
    set longest ago."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, name: Name, value: Value) -> None:
        super().__setitem__(name, value)
        self.move_to_end(name)
        if len(self) > self._most:
            self.popitem(last=False)


class RecentEvents:
    """``window_s``: how long an event counts. ``max_names``: remembered; above it, the one whose last event
    is the oldest is forgotten."""

    def __init__(self, window_s: float, max_names: int) -> None:
        self._window_s = window_s
        self._events: RecentMap[str, deque[float]] = RecentMap(max_names)

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
        events = self._events.get(name) or deque()
        events.append(now)
        self._events[name] = events

    def take_back(self, name: str) -> None:
        """The last event of this name does not count after all."""
        events = self._events.get(name)
        if events:
            events.pop()
            if not events:
                del self._events[name]
