"""What a model's writing is made of, once it is read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Words:
    """Text of the answer."""

    text: str


@dataclass(slots=True)
class Thoughts:
    """Text of what the model says to itself before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """``arguments``: JSON text of an object. ``id``: as the model gave it, or as its template takes it."""

    name: str
    arguments: str
    id: str = ""


Piece = Words | Thoughts | ToolCall
