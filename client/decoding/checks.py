"""Numbers that callers give, checked: what is impossible is named, with what would do."""

from __future__ import annotations

import math
from numbers import Integral, Real

from ...swarm.errors import UsageError


def check_number(
    name: str, value: object, low: float, high: float, allowed: str, *, above: bool = False
) -> None:
    """Raises UsageError unless ``value`` is finite and from ``low`` (``above``: more than that) to
    ``high``."""
    number = _as_float(value)
    if not low <= number <= high or math.isinf(number) or (above and number == low):
        raise impossible(name, value, allowed)


def check_integer(name: str, value: object, low: int | None, high: int | None, allowed: str) -> None:
    """Raises UsageError unless ``value`` is a whole number from ``low`` to ``high``; None is no limit."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise impossible(name, value, allowed)
    number = int(value)
    if (low is not None and number < low) or (high is not None and number > high):
        raise impossible(name, value, allowed)


def impossible(name: str, value: object, allowed: str) -> UsageError:
    return UsageError(f"{name} {value!r:.100} is not possible", hint=f"Give {allowed}.")


def _as_float(value: object) -> float:
    """``value`` as a float; NaN if it is not a number. True and False do not count as numbers."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # a whole number with hundreds of digits
        return math.inf
