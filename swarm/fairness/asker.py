"""The client that a task works for, in a program with several clients, such as a gateway.

It is a variable of the task's context, so that all code that divides work fairly knows it.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Asker:
    """``name``: whose turn the work takes; equal for all that one client asks. ``nbytes``: of its request."""

    name: str = ""
    nbytes: int = 0


ITSELF = Asker()
"""The asker of a program that works for itself alone."""
ASKER: ContextVar[Asker] = ContextVar("asker", default=ITSELF)
