"""Entries that others bring us to keep, and their checks, cheapest first."""

from __future__ import annotations

import logging
from typing import Any

from ...swarm.errors import RemoteProtocolError
from ...swarm.fairness.shares import Holder
from ..records.entry_check import EntryCheck
from ..records.envelope import subkey_of, unseal
from ..records.kept_entries import KeptEntries

MAX_STORED_AT_ONCE = 8
"""One request has at most this many entries; ours have one."""

OWN, GUESTS = "own", "guests"
"""The groups of entries that this process itself keeps here. No address group has such a name."""

logger = logging.getLogger(__name__)


class StoreCalls:
    """Answers hivemind's ``StoreRequest``s. ``check``: what an entry must be; ``own_id``: our PeerID."""

    def __init__(self, kept: KeptEntries, check: EntryCheck, own_id: str) -> None:
        self.kept = kept
        self._check = check
        self._own_id = own_id

    def answer(self, request: Any, sender: Holder) -> list[bool]:
        """For each entry whether it is kept, or need not be. Raises ValueError if its fields do not match.

        Whole dictionaries and entries for a cache are refused: every owner brings its own entries.
        """
        fields = (request.keys, request.subkeys, request.values, request.expiration_time, request.in_cache)
        if len({len(field) for field in fields}) != 1 or len(request.keys) > MAX_STORED_AT_ONCE:
            raise ValueError(
                f"a request to store needs 1 to {MAX_STORED_AT_ONCE} entries, each with all fields"
            )
        return [
            not in_cache and self._keep(key, subkey, value, expiration, sender)
            for key, subkey, value, expiration, in_cache in zip(*fields, strict=True)
        ]

    def keep(self, key: bytes, owner: str, value: bytes, expiration: float) -> bool:
        """Keep an entry that this process stores: its own, or one that it checked for a peer that is not in
        the DHT."""
        body = unseal(key, subkey_of(owner.encode()), expiration, value).body
        is_own = owner == self._own_id
        return self.kept.put(key, owner, value, expiration, OWN if is_own else GUESTS, body, by_owner=is_own)

    def _keep(self, key: bytes, subkey: bytes, value: bytes, expiration: float, sender: Holder) -> bool:
        try:
            owner, body, *_ = unseal(key, subkey, expiration, value)
            answer = self.kept.answer(key, owner, value, expiration, sender.group, body)
            if answer is not None:
                return answer
            self._check.check(key, subkey, expiration, value)
        except RemoteProtocolError as error:
            logger.debug("refused a DHT entry: %s", error)
            return False
        by_owner = owner == sender.peer_id
        return self.kept.put(key, owner, value, expiration, sender.group, body, by_owner=by_owner)
