"""A wall clock that can be wrong: ``time.time`` of this process, some seconds off. Monotonic clocks stay."""

from __future__ import annotations

import time

_true_time = time.time
_skew_s = 0.0


def install() -> None:
    """Before anything keeps a reference to ``time.time``, as hivemind does when it is imported."""
    time.time = _skewed_time


def set_skew(seconds: float) -> None:
    """How far this process is ahead of the others from now on."""
    global _skew_s
    _skew_s = seconds


def _skewed_time() -> float:
    return _true_time() + _skew_s
