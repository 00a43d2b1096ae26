"""Checks on the numbers of a configuration: what is within them can be computed with."""

from __future__ import annotations

from ....swarm.errors import CheckpointError, UnsupportedModelError
from .shown import shown

MAX_WIDTH = 1 << 20
"""No layer may be wider. It is more than any in use, and bounds what a damaged file can make us allocate."""
MAX_CONTEXT = 1 << 26
MAX_VOCAB = 1 << 22
SCALES = (1e-6, 1e6)
"""Factors, of rotary frequencies and the like, lie between these, both excluded."""

SOFTCAPS = (SCALES[0], 1e9)
"""Softcaps lie between these, both excluded: numbers are divided by them."""


def check_count(name: str, value: int, largest: int) -> None:
    """CheckpointError unless ``value`` is from 1 to ``largest``."""
    if not 0 < value <= largest:
        raise CheckpointError(f"{name} is {shown(value)}, expected a positive number up to {largest}")


def check_between(name: str, value: float, bounds: tuple[float, float]) -> None:
    """CheckpointError unless ``value`` lies between ``bounds``, both excluded."""
    if not bounds[0] < value < bounds[1]:
        raise CheckpointError(
            f"{name} is {shown(value)}, expected a number above {bounds[0]:g} and below {bounds[1]:g}"
        )


def check_softcap(name: str, value: float) -> None:
    """CheckpointError unless ``value`` is 0, which is none, or within bounds."""
    if value != 0:
        check_between(f"the softcap of {name}", value, SOFTCAPS)


def check_one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UnsupportedModelError(
            f"{what} {shown(value)} is not supported", hint=f"Supported: {', '.join(known)}."
        )
