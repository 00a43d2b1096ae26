"""What the rest of the project needs from a directory of nodes, wherever it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..swarm.placement.demand import Wanted, WantedModel
from ..swarm.types import Incarnation, ModelRef, NodeInfo
from .left_out import LeftOut
from .namesakes import Namesake

TTL_S = 60.0
"""An announcement lives for this many seconds. A node that was killed may be listed for as long."""

REFRESH_S = TTL_S / 3
"""Seconds between announcements of a running node: two may get lost before it disappears."""

ALONE_S = 20.0
"""A node that reaches no other is believed after this many seconds: every node pings its initial peers each
15 s, so one that restarted would have been found."""


class Directory(Protocol):
    """Announcements by model. One directory object announces at most one node: the identity it was made with.

    Reads are fresh: they return what was announced or withdrawn before the call, as far as the network lets
    them see, and never what has expired. Results are bounded, well-formed and in a fixed order. Methods raise
    NetworkError when the directory cannot be reached.
    """

    async def announce(self, info: NodeInfo) -> None:
        """Publish ``info`` for TTL_S seconds, in place of what this node announced before."""

    async def withdraw(self) -> None:
        """Take back at once what this node announced and what it wants, if anything. Idempotent."""

    async def want(self, models: Sequence[WantedModel]) -> None:
        """Tell idle nodes for TTL_S seconds that this identity finds no route through ``models``, MAX_WANTED
        at most, in place of what it wanted before. An empty ``models``: it wants nothing any more."""

    async def wanted(self) -> list[Wanted]:
        """What all peers want, one record for each peer."""

    async def nodes(self, model: ModelRef) -> list[NodeInfo]:
        """Every node that serves blocks of ``model`` (same digest; the name may differ), in any state."""

    async def nodes_of(self, models: Sequence[ModelRef]) -> list[NodeInfo]:
        """The nodes of several models, read together."""

    async def models(self) -> list[ModelRef]:
        """Every model that is served. Two of one name with different digests are two models."""

    async def all_nodes(self) -> list[NodeInfo]:
        """Every node of every model."""

    async def is_announced(self) -> bool | None:
        """Whether other nodes return what we announced; None while nothing is announced, or if there is no
        node to ask. If few return it, it is announced to more of them from now on."""

    @property
    def incarnation(self) -> Incarnation | None:
        """Which process of its identity this is; None before an announcement was taken, and where no other
        process can announce under it."""

    @property
    def namesakes(self) -> Sequence[Namesake]:
        """Other processes that run under our own identity at this time, as far as was seen."""

    async def look_for_namesakes(self) -> None:
        """Look for them in places that announcing does not read."""

    @property
    def is_alone(self) -> bool:
        """Whether those that answered the last reading reach no other peer of the swarm, and started or lost
        the last one less than ALONE_S ago: what they lack may be there."""

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Peers whose announcements were read lately and cannot be used: no other method knows them."""

    async def close(self) -> None:
        """Stop background work. Does not withdraw. Idempotent."""
