"""Peers whose announcements cannot be used: left out by their reader, counted, and shown to people.

A swarm goes on without them. Each is logged once; memory is bounded, as identities cost nothing.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_PEERS = 256
"""This many peers are remembered by name; more are only counted."""
FORGET_S = 120.0
"""A peer that announces nothing unusable any more is forgotten after this many seconds: two lives of an
entry."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A peer whose announcement cannot be used, and why, in a few words for people."""

    peer_id: str
    reason: str

    def as_dict(self) -> dict[str, object]:
        return {"peer_id": self.peer_id, "reason": self.reason}


class LeftOutPeers:
    """``count``: unusable announcements of all peers that were read so far. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.count = 0
        self._clock = clock
        self._peers: OrderedDict[str, tuple[float, str]] = OrderedDict()  # when it was read last, and why

    def note(self, peer_id: str, reason: str, bug: BaseException | None = None) -> None:
        """An announcement of ``peer_id`` cannot be used. ``bug``: an error of ours that it has caused, which
        is logged with its traceback."""
        now = self._clock()
        self.count += 1
        self._forget(now)
        known = self._peers.pop(peer_id, None)
        if known is None and len(self._peers) >= MAX_PEERS:
            return
        self._peers[peer_id] = now, reason
        if known is None or known[1] != reason:
            level = logging.INFO if bug is None else logging.ERROR
            logger.log(level, "event=peer_left_out peer=%s reason=%r", peer_id, reason, exc_info=bug)

    def all(self) -> tuple[LeftOut, ...]:
        """The peers that were left out lately, by peer id."""
        self._forget(self._clock())
        return tuple(LeftOut(peer_id, self._peers[peer_id][1]) for peer_id in sorted(self._peers))

    def _forget(self, now: float) -> None:
        while self._peers and next(iter(self._peers.values()))[0] <= now - FORGET_S:
            self._peers.popitem(last=False)
