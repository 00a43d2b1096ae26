"""Announcements that are handed on from peer to peer: a peer that proves itself needs no look-up."""

from __future__ import annotations

import time
from collections.abc import Callable

from ...swarm.errors import RemoteProtocolError
from ...swarm.membership.membership import Membership
from ...swarm.types import ModelRef, NodeInfo, SignedRecord
from . import keys
from .bodies import decode
from .entry_check import EntryCheck
from .envelope import subkey_of, unseal

STALE_S = 24 * 3600.0
"""A record tells where its owner listens until this many seconds after its end, because sessions keep the
records they began with."""

_NO_KEY = bytes(20)


class NodeRecords:
    """Reads records of nodes of one ``model``; in a swarm with a ``membership``, of its members.
    ``clock``: Unix time in seconds."""

    def __init__(
        self, model: ModelRef, membership: Membership | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._model = model
        self._tag = "" if membership is None else membership.tag
        self._check = EntryCheck(clock=clock, membership=membership)
        self._clock = clock

    def maddrs(self, peer_id: str, record: SignedRecord) -> tuple[str, ...]:
        """The addresses where the node listens, by its own signed record. Raises RemoteProtocolError."""
        subkey = subkey_of(peer_id.encode())
        sealed = unseal(_NO_KEY, subkey, record.expiration, record.value)
        info = decode(sealed.owner, sealed.body)  # says under which key it was signed
        if not isinstance(info, NodeInfo) or info.model.digest != self._model.digest:
            raise RemoteProtocolError(f"a record of {peer_id} that does not describe a node of this model")
        key = keys.key_hash(keys.node_key(info.model, info.span), self._tag)
        self._check.check(key, subkey, record.expiration, record.value)
        if record.expiration + STALE_S < self._clock():
            raise RemoteProtocolError(f"a record of {peer_id} that expired long ago")
        return info.dial_maddrs
