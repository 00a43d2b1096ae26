"""Where the processes of the chaos test run: all on 127.0.0.1, or each on a machine of wan_lab."""

from __future__ import annotations

import contextlib

from ..wan_lab.network import WanLab

LOOPBACK = "127.0.0.1"


class Places:
    """``lab`` None: everything is on this machine, and a partition stops a daemon in place of the packets."""

    def __init__(self, lab: WanLab | None) -> None:
        self.lab = lab

    def host(self, place: str) -> str:
        """The address to listen at there."""
        if self.lab is None:
            return LOOPBACK
        return self.lab.address(place) if place in self.lab.machines else self.lab.add(place)

    def inside(self, place: str) -> contextlib.AbstractContextManager[None]:
        """What this thread starts meanwhile runs there."""
        if self.lab is None:
            return contextlib.nullcontext()
        self.host(place)
        return self.lab.inside(place)
