"""Which sessions hold which slots of the KV pool. Plain ints: no tensor, no clock, no thread.

A slot is the memory of one page of tokens in one block, or of one block's state; a page of a session is one
slot for each block of a group (``kv_layout``). Pages are shared by counting holders, and a page without a
holder lives on while the prefix cache has a key for it, until its slots are needed. At any time
``free + used + cached = total`` slots.

Memory is promised before it is given: ``reserve`` promises slots that ``allocate`` later takes, evicting
cached pages only then. ``reserved <= free + cached`` always holds, so a promise can be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ....swarm.errors import LocalProtocolError, UsageError
from ....swarm.fairness.owner_lru import OwnerLru
from ....swarm.fairness.shares import Holder


class PrefixKey(NamedTuple):
    """A page's key in the prefix cache: the peer it was computed for, the span's first block and end, whether
    of a session with ``long_context``, how far its blocks see, and the name that this peer gave it."""

    owner: str
    start: int
    end: int
    long_context: bool
    reach: int
    name: bytes


NOBODY = Holder("")
"""Whose a page without a key is."""


class Page:
    """``slots``: one for each block of a group. Compared by identity; only its allocator changes it.

    ``holders``: sessions that have it in their tables. ``claims``: how many of them are sure to write to it
    while others may hold it, as a fork does with its parent's last page. ``key``: its name in the prefix
    cache, where it counts for ``owner``.
    """

    __slots__ = ("claims", "holders", "key", "owner", "slots")

    def __init__(self, slots: tuple[int, ...]) -> None:
        self.slots = slots
        self.holders = 1
        self.claims = 0
        self.key: PrefixKey | None = None
        self.owner = NOBODY

    @property
    def copies_due(self) -> int:
        """Copies that the claims will cost: the last holder writes in place."""
        return min(self.claims, max(self.holders - 1, 0))


class PageAllocator:
    """``total`` slots. ``on_evict`` is told of each page whose key is taken away to free its slots."""

    def __init__(self, total: int, on_evict: Callable[[Page], None] | None = None) -> None:
        if total < 0:
            raise UsageError(f"a KV pool of {total} slots is not possible")
        self.total = total
        self.on_evict = on_evict
        self._free = list(range(total - 1, -1, -1))  # a stack: low numbers first, so touched memory is reused
        self._cached: OwnerLru[Page] = OwnerLru()  # in slots
        self._reserved = 0

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        """Slots of pages that no session holds but the prefix cache knows."""
        return self._cached.size

    @property
    def used(self) -> int:
        return self.total - len(self._free) - self._cached.size

    @property
    def reserved(self) -> int:
        return self._reserved

    @property
    def available(self) -> int:
        """Slots that are neither used nor promised."""
        return len(self._free) + self._cached.size - self._reserved

    # Promises.

    def reserve(self, slots: int) -> bool:
        """Promise slots; False, and nothing changed, if there are not that many."""
        if slots < 0:
            raise LocalProtocolError(f"{slots} slots cannot be reserved")
        if slots > self.available:
            return False
        self._reserved += slots
        return True

    def unreserve(self, slots: int) -> None:
        """Take a promise back."""
        if not 0 <= slots <= self._reserved:
            raise LocalProtocolError(f"{slots} slots were never reserved: {self._reserved} are")
        self._reserved -= slots

    def allocate(self, blocks: int) -> Page:
        """A page out of reserved slots, held once. Its content is undefined."""
        self.unreserve(blocks)
        free = self._free
        while len(free) < blocks:
            self._evict()
        if blocks == 1:
            return Page((free.pop(),))
        slots = tuple(free[: -blocks - 1 : -1])
        del free[-blocks:]
        return Page(slots)

    # Pages.

    def share(self, page: Page, *, claim: bool = False) -> bool:
        """Add a holder, with a ``claim`` if it is sure to write; False, and nothing changed, if the slots
        that this takes are not there."""
        revived = len(page.slots) if page.holders == 0 else 0
        holders, claims = page.holders + 1, page.claims + claim
        promised = (min(claims, holders - 1) - page.copies_due) * len(page.slots)
        if revived + promised > self.available:
            return False
        if revived:
            self._cached.remove(page)
        page.holders, page.claims = holders, claims
        self._reserved += promised
        return True

    def claim(self, page: Page) -> bool:
        """A holder becomes sure to write; False, and nothing changed, if the copy that this takes cannot be
        promised."""
        promised = (min(page.claims + 1, page.holders - 1) - page.copies_due) * len(page.slots)
        if promised > self.available:
            return False
        page.claims += 1
        self._reserved += promised
        return True

    def unclaim(self, page: Page) -> None:
        """A holder has written, or will not."""
        self._change(page, page.holders, page.claims - 1)

    def release(self, page: Page, *, claim: bool = False) -> None:
        """Remove a holder, with its claim if it had one. If none is left, the page is cached if it has a key,
        else its slots are free."""
        self._change(page, page.holders - 1, page.claims - claim)
        if page.holders:
            return
        if page.key is not None:
            self._cached.add(page.owner, page, len(page.slots))
        else:
            self._free.extend(reversed(page.slots))

    def copies_without_promise(self, page: Page, *, claim: bool) -> bool:
        """Whether a holder that wants a copy of a shared page must find slots for it that were not
        promised."""
        after = min(page.claims - claim, max(page.holders - 2, 0))
        return after == page.copies_due

    def drop_key(self, page: Page) -> None:
        """The prefix cache forgets a page: it is freed if it has no holder."""
        page.key = None
        if page.holders == 0:
            self._cached.remove(page)
            self._free.extend(reversed(page.slots))

    def _change(self, page: Page, holders: int, claims: int) -> None:
        if holders < 0 or claims < 0 or claims > holders:
            raise LocalProtocolError(f"a page cannot have {holders} holders with {claims} claims")
        due = page.copies_due
        page.holders, page.claims = holders, claims
        self._reserved += (page.copies_due - due) * len(page.slots)

    def _evict(self) -> None:
        """Free the slots of a cached page: of the owner that has most, the one that was let go longest
        ago."""
        page = self._cached.pop()
        self._free.extend(reversed(page.slots))
        if self.on_evict is not None:
            self.on_evict(page)
        page.key = None
