"""The times in which a node serves: it starts when the volunteer's limits allow it, and leaves when not.

A node that rests drains as at Ctrl-C: its sessions go to others with what they hold, and its memory, its
ports and its place in the directory are given back.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

from ....swarm.errors import UsageError
from ....swarm.runtime.tasks import end, first
from ...volunteering.machine_state import MachineReader, MachineState
from ...volunteering.policy import RestPolicy, VolunteerLimits

T = TypeVar("T")

LOOK_S = 5.0
"""Seconds between looks at the machine."""


class StopRequest:
    """A person wants the command to end. Called for each signal; passes each on to what runs then."""

    def __init__(self) -> None:
        self.requested = False
        self._event = asyncio.Event()
        self._call: Callable[[], object] | None = None

    def __call__(self) -> None:
        self.requested = True
        self._event.set()
        if self._call is not None:
            self._call()

    def calls(self, function: Callable[[], object]) -> None:
        """``function`` is called for each signal from now on, and now if there was one."""
        self._call = function
        if self.requested:
            function()

    async def before(self, work: Coroutine[object, object, T]) -> T | None:
        """What ``work`` gives; None where the request comes first, which ends it."""
        working = asyncio.ensure_future(work)
        await first(working, self._event.wait())
        return None if self.requested else working.result()


class ServingTimes:
    """``on_rest`` is told why the node rests, and "" when it need not any more. ``read`` and ``clock`` are
    those of the machine."""

    def __init__(
        self,
        policy: RestPolicy,
        on_rest: Callable[[str], object],
        *,
        read: Callable[[], MachineState] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._policy = policy
        self._on_rest = on_rest
        self._read = read or MachineReader().read
        self._clock = clock
        self._sleep = sleep
        self._why = ""

    @property
    def rests(self) -> bool:
        """Whether it may not serve now."""
        return bool(self._why)

    async def may_serve(self) -> bool:
        """True, once the node may serve."""
        await self._until(resting=False)
        return True

    async def serve(self, run: Coroutine[object, object, None], leave: Callable[[], object]) -> None:
        """``run`` until it ends; ``leave`` is called when the node must rest. Raises what ``run`` raises."""

        async def watch() -> None:
            await self._until(resting=True)
            leave()

        watching = asyncio.create_task(watch(), name="serving-times")
        try:
            await run
        finally:
            await end(watching)

    async def _until(self, *, resting: bool) -> None:
        while True:
            state = await asyncio.to_thread(self._read)
            why = self._policy.why_rest(state, self._clock())
            if why != self._why:
                self._why = why
                self._on_rest(why)
            if bool(why) is resting:
                return
            await self._sleep(LOOK_S)


def volunteer_limits(arguments: argparse.Namespace) -> VolunteerLimits:
    return VolunteerLimits(
        hours=tuple(arguments.hours or ()),
        only_idle=arguments.only_idle,
        only_mains=arguments.only_mains,
        max_temperature_c=arguments.max_temperature,
    )


def lower_priority(nice: int) -> None:
    """Of this process, and of what it starts from now on. Raises UsageError."""
    if not nice:
        return
    if not hasattr(os, "nice"):
        raise UsageError("--nice is not possible on this system", hint="Leave it out.")
    os.nice(nice)
