"""Entries of one key as several keepers tell them, merged.

All of them are signed, so one honest keeper is enough for an entry to be found. But a keeper that ignores the
bounds may tell of thousands of invented owners. So if there are more entries than a reader takes, those that
most keepers tell come first.
"""

from __future__ import annotations

from collections.abc import Iterable

from .entry_check import Entry
from .keys import MAX_ENTRIES, in_fair_order


class ToldEntries:
    """``entries``: by owner, of each the one that expires last; filled by ``add``."""

    def __init__(self, entries: dict[str, Entry] | None = None) -> None:
        self.entries: dict[str, Entry] = {} if entries is None else entries
        self._tellers: dict[str, set[str]] = {}

    def add(self, teller: str, entries: Iterable[Entry], now: float) -> None:
        """Add what ``teller`` tells, in one or several calls. ``now``: Unix time in seconds."""
        for entry in entries:
            if entry.expiration <= now:
                continue
            self._tellers.setdefault(entry.owner, set()).add(teller)
            before = self.entries.get(entry.owner)
            if before is None or before.expiration < entry.expiration:
                self.entries[entry.owner] = entry

    def bounded(self, salt: str) -> dict[str, Entry]:
        """At most MAX_ENTRIES of them. ``salt``: for the order of those that equally many keepers tell."""
        if len(self.entries) <= MAX_ENTRIES:
            return self.entries
        most_told = sorted(in_fair_order(self.entries, salt), key=lambda owner: -len(self._tellers[owner]))
        return {owner: self.entries[owner] for owner in most_told[:MAX_ENTRIES]}
