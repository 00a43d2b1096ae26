"""Times, rates and chances as people write them: 50ms, 100mbit, 1%."""

from __future__ import annotations

import re

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}
_BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "bit": 1.0, "": 1.0}


def seconds(text: str) -> float:
    """50ms, 2s, 0.1. Raises ValueError."""
    return _number(text, _SECONDS, "a time, such as 50ms or 2s")


def rate(text: str) -> float | None:
    """100mbit, 1gbit, in bit/s; none. Raises ValueError."""
    return None if text == "none" else _number(text, _BITS, "a rate, such as 100mbit, 1gbit or none")


def chance(text: str) -> float:
    """1%, 0.01. Raises ValueError."""
    return _number(text, {"%": 0.01, "": 1.0}, "a share, such as 1% or 0.01")


def _number(text: str, units: dict[str, float], what: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z%]*)", text.strip().lower())
    if match is None or match[2] not in units:
        raise ValueError(f"{text!r} is not {what}")
    return float(match[1]) * units[match[2]]
