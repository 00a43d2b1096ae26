"""What one DHT node keeps for others, in bounds that no peer can talk it out of."""

from __future__ import annotations

from typing import Any

from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue

from .layout import MAX_ENTRIES

MAX_TOTAL_ENTRIES = 65_536
"""Entries of all keys together: about 60 MB of usual entries, 256 MB of the largest ones."""


class BoundedStorage(DHTLocalStorage):
    """Signed dictionary entries only, so many a key and so many in all; whoever is in may stay and refresh.

    Newcomers are refused when it is full, never incumbents evicted: a flood of invented identities can then
    keep newcomers out of one key, but cannot remove a node that serves.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES, max_total: int = MAX_TOTAL_ENTRIES) -> None:
        super().__init__()
        self._max_entries = max_entries
        self._max_total = max_total
        self._total = 0  # never below the true number; counted anew when it reaches the bound
        self.turned_away = 0  # newcomers, since the start

    def store(self, key: DHTID, value: bytes, expiration_time: float, subkey: Any = None) -> bool:
        if subkey is None:
            return False  # a plain value
        return self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: DHTID, subkey: Any, value: bytes, expiration_time: float) -> bool:
        """True if the entry is stored, or was already; False if there is a newer one, or no room."""
        found = self.get(key)
        if found is not None and (old := found.value.get(subkey)) is not None:
            if old.expiration_time >= expiration_time:
                # Not passed on: TimedStorage would file the newer entry under the older expiration.
                return old.expiration_time == expiration_time and old.value == value
        elif (found is not None and len(found.value) >= self._max_entries) or not self._has_room():
            self.turned_away += 1
            return False
        else:
            self._total += 1
        if found is None:
            # The base class asks this class's ``store`` for the new dictionary; go around it.
            return self._store_new(key, subkey, value, expiration_time)
        if expiration_time > found.expiration_time:
            super(DHTLocalStorage, self).store(key, found.value, expiration_time)
        return found.value.store(subkey, value, expiration_time)

    def _store_new(self, key: DHTID, subkey: Any, value: bytes, expiration_time: float) -> bool:
        dictionary = DictionaryDHTValue()
        dictionary.store(subkey, value, expiration_time)
        return super(DHTLocalStorage, self).store(key, dictionary, expiration_time)

    def _has_room(self) -> bool:
        if self._total >= self._max_total:
            self._total = sum(len(entry.value) for _, entry in list(self.items()))
        return self._total < self._max_total
