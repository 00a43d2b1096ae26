"""What a node's presence tells its starter."""

from __future__ import annotations

from typing import Literal, Protocol

PresenceEvent = Literal["peer_found", "network_lost", "network_restored", "unseen", "seen", "copied"]


class Emit(Protocol):
    def __call__(self, event: PresenceEvent, /, **details: object) -> None: ...
