"""What an API must have to write answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...http.errors import ApiError
from .parts import Part, Said, Usage


class Writer(ABC):
    """One answer in the form of an API: as a stream, by ``begin``, ``part`` and ``end``, or by ``whole``.
    Each gives what is sent; "" for nothing. The path's ``ReplyForm`` says what a stream is like as such, and
    how its failure is told, unless there is a ``failure``: it may depend on what was said before."""

    failure: Callable[[ApiError], str] | None = None

    def begin(self, index: int, usage: Usage) -> str:
        """Before the first part of a choice."""
        return ""

    @abstractmethod
    def part(self, index: int, part: Part, usage: Usage) -> str:
        """A part of a choice. ``usage``: so far."""

    def swarm(self, news: Mapping[str, Any]) -> str:
        """What happens in the swarm, for a client that asks for it; see ``SwarmNews``."""
        return ""

    @abstractmethod
    def end(self, usage: Usage) -> str:
        """After the last choice's last part."""

    @abstractmethod
    def whole(self, choices: Sequence[Said], usage: Usage) -> str:
        """The body of an answer in one piece."""
