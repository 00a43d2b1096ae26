"""Who a task works for, where a program works for several: a client of a gateway.

A variable of the task's context, so that whatever divides work fairly knows it.
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
"""A program that works for nobody else."""
ASKER: ContextVar[Asker] = ContextVar("asker", default=ITSELF)
