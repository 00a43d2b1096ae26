"""Whether a volunteer's machine serves or rests: limits and states of the machine in, a reason to rest out.

Every limit has a distance between its two borders, in degrees or in time, so that a node which stands at a
border does not load and unload its model again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .hours import Hours, any_holds
from .machine_state import MachineState

BUSY_LOAD, FREE_LOAD = 0.25, 0.10
"""Parts of all processors. With more than the first taken by others the machine is in use, with less than
the second it is not; between them it is what it was."""
BUSY_S = 60.0
"""A machine must be in use by other processes for this many seconds before its node rests: an update or a
page that loads is over by then."""
TYPED_S = 60.0
"""Somebody who typed within this many seconds is using the machine."""
FREE_S = 300.0
"""A machine that was in use must be idle for this many seconds before its node serves again."""
COOLER_C = 10.0
"""A machine that was too hot must be this many degrees below its limit before its node serves again."""


@dataclass(frozen=True, slots=True)
class VolunteerLimits:
    """``hours``: of the day in which the node serves; none: all. ``max_temperature_c``: degrees Celsius."""

    hours: tuple[Hours, ...] = ()
    only_idle: bool = False
    only_mains: bool = False
    max_temperature_c: float | None = None

    def __bool__(self) -> bool:
        """Whether there is any limit."""
        return self != VolunteerLimits()


class RestPolicy:
    """``why_rest`` is asked again and again. It knows what it said before."""

    def __init__(self, limits: VolunteerLimits) -> None:
        self._limits = limits
        self._is_hot = False
        self._in_use = False
        self._busy_since: float | None = None  # of other processes, while the node still serves
        self._free_since: float | None = None

    def why_rest(self, state: MachineState, now_s: float) -> str:
        """In a few words, for people; "" to serve. ``now_s``: of a clock that never goes back. What the
        system does not tell is no reason."""
        return next(self._reasons(state, now_s), "")

    def _reasons(self, state: MachineState, now_s: float) -> Iterator[str]:
        limits = self._limits
        self._look_at_use(state, now_s)
        self._look_at_temperature(state)
        if limits.hours and not any_holds(limits.hours, state.now):
            yield f"it serves at {', '.join(map(str, limits.hours))}, and it is {state.now:%H:%M}"
        if limits.only_mains and state.on_mains is False:
            yield "the machine runs on its battery"
        if self._is_hot:
            yield f"the machine is hot: {state.temperature_c:.0f} degrees of {limits.max_temperature_c:.0f}"
        if limits.only_idle and self._in_use:
            yield "somebody is using the machine"

    def _look_at_temperature(self, state: MachineState) -> None:
        limit, told = self._limits.max_temperature_c, state.temperature_c
        if limit is None or told is None:
            self._is_hot = False
        else:
            self._is_hot = told >= (limit - COOLER_C if self._is_hot else limit)

    def _look_at_use(self, state: MachineState, now_s: float) -> None:
        load, typed_s = state.others_load or 0.0, state.input_idle_s
        typing = typed_s is not None and typed_s < TYPED_S
        if load <= BUSY_LOAD:
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since = now_s
        if typing or (self._busy_since is not None and now_s - self._busy_since >= BUSY_S):
            self._in_use, self._free_since = True, None
        elif self._in_use and load < FREE_LOAD:
            self._free_since = now_s if self._free_since is None else self._free_since
            self._in_use = now_s - self._free_since < FREE_S
        else:
            self._free_since = None
