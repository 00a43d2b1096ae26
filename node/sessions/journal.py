"""What sessions sent on, exactly as it went on the wire, so that a replacement can be fed the same bytes.

Rows of a codec have a fixed size and stand alone, so a position is an offset. All journals of a node share
one budget. When it is spent, rows kept of finished sessions go first: of the address group that has most, of
its peer that has most, those used least recently. Then whole journals go, for one with a hole is of no use:
of the same choice, the one that was written to the longest ago. What a finished session left, only its own
peer finds.
Counted are rows; the memory that a growing bytearray keeps in reserve, at most an eighth, comes on top.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from ...swarm.errors import LocalProtocolError
from ...swarm.fairness.owner_lru import OwnerLru
from ...swarm.fairness.shares import Holder
from ...swarm.protocol.field_types import PAGE_TOKENS
from ...swarm.protocol.wire import Payload
from ...swarm.types import Span

PageKey = tuple[str, int, int, bool, str, bytes]
"""The key of a finished page's rows: the peer they were computed for, first block, end block, whether in a
session with ``long_context``, codec of the rows, and the name that this peer gave the page."""


@dataclass(frozen=True, slots=True)
class JournalStatistics:
    """``used`` and ``budget`` in bytes. ``lost``: journals that had to be dropped since the start."""

    used: int
    budget: int
    sessions: int
    pages: int
    lost: int


class Journal:
    """One session's rows, from position ``base`` up to ``end``, for the peer ``owner`` of ``group``. Made by
    ``JournalBook.open``.

    ``lost``: dropped to keep to the budget; nothing is kept from then on.
    """

    def __init__(self, book: JournalBook, row_bytes: int, base: int, owner: str, group: str) -> None:
        self._book = book
        self._rows = bytearray()
        self.owner = owner
        self.group = group
        self.row_bytes = row_bytes
        self.base = base
        self.lost = False

    def __len__(self) -> int:
        """Bytes."""
        return len(self._rows)

    @property
    def end(self) -> int:
        return self.base + len(self._rows) // self.row_bytes

    def holds(self, start: int) -> bool:
        """Whether the rows from ``start`` on are here, as far as they are computed."""
        return not self.lost and start >= self.base

    def write(self, position: int, rows: Payload) -> None:
        """The session's rows from ``position`` on are now these."""
        if len(rows) % self.row_bytes:
            raise LocalProtocolError(f"{len(rows)} bytes are not whole rows of {self.row_bytes}")
        if self.lost:
            return
        if position > self.end:
            raise LocalProtocolError(f"rows at position {position} leave a hole after {self.end}")
        self.rollback(position)
        try:
            self._rows += rows
        except MemoryError:
            self._book._lose(self)
        else:
            self._book._grown(self, len(rows))

    def rollback(self, position: int) -> None:
        """Forget the rows from ``position`` on; below ``base``, the journal begins anew at ``position``."""
        kept = max(0, position - self.base) * self.row_bytes
        dropped = len(self._rows) - kept
        self.base = min(self.base, position)
        if dropped > 0:
            del self._rows[kept:]
            self._book._shrunk(self, dropped)

    def slice(self, start: int, stop: int) -> bytes | None:
        """The rows [start, stop); None if they are not all here."""
        if self.lost or not self.base <= start <= stop <= self.end:
            return None
        first, last = ((position - self.base) * self.row_bytes for position in (start, stop))
        return bytes(memoryview(self._rows)[first:last])

    def close(self) -> None:
        """The session is over. Idempotent."""
        self.rollback(self.base)
        self.lost = True


class JournalBook:
    """The journals of a node, within ``budget`` bytes. No I/O, no clock."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._used = 0
        self._lost = 0
        self._journals: OrderedDict[Journal, None] = OrderedDict()  # that hold rows; last written at the end
        self._held: Counter[tuple[str, str]] = Counter()  # bytes of these, by group and owner
        self._held_by_group: Counter[str] = Counter()
        self._pages: dict[PageKey, bytes] = {}
        self._kept: OwnerLru[PageKey] = OwnerLru()  # the same pages, in bytes

    def statistics(self) -> JournalStatistics:
        return JournalStatistics(self._used, self.budget, len(self._journals), len(self._pages), self._lost)

    def open(
        self, row_bytes: int, base: int, rows: Payload = b"", *, owner: str = "", group: str = ""
    ) -> Journal:
        """A journal of rows of ``row_bytes``, that begins at ``base`` with ``rows``. ``group``: the address
        group of its owner."""
        if row_bytes < 1 or base < 0:
            raise LocalProtocolError(
                f"a journal with rows of {row_bytes} bytes from position {base} on is not possible"
            )
        journal = Journal(self, row_bytes, base, owner, group)
        journal.write(base, rows)
        return journal

    def finish(
        self, journal: Journal, span: Span, codec: str, names: Sequence[bytes], *, long_context: bool = False
    ) -> None:
        """Close a session's journal; keep the rows of its first whole pages, one a name, for sessions of the
        same owner that begin alike."""
        kept: list[tuple[PageKey, bytes]] = []
        for index, name in enumerate(names):
            key = (journal.owner, span.start, span.end, long_context, codec, name)
            if key in self._pages:
                self._kept.use(key)
            elif (rows := journal.slice(index * PAGE_TOKENS, (index + 1) * PAGE_TOKENS)) is not None:
                kept.append((key, rows))
        journal.close()
        for key, rows in kept:
            if key not in self._pages:  # a name may be given twice
                self._pages[key] = rows
                self._kept.add(Holder(journal.owner, journal.group), key, len(rows))
                self._used += len(rows)
        while self._used > self.budget:
            self._drop_page()

    def recall(
        self, owner: str, span: Span, codec: str, names: Sequence[bytes], *, long_context: bool = False
    ) -> tuple[int, bytes]:
        """The rows kept of the owner's pages of these names: the longest run of whole pages that ends with
        the last of them, as its first position and its rows."""
        found: list[bytes] = []
        for name in reversed(names):
            key = (owner, span.start, span.end, long_context, codec, name)
            rows = self._pages.get(key)
            if rows is None:
                break
            self._kept.use(key)
            found.append(rows)
        return (len(names) - len(found)) * PAGE_TOKENS, b"".join(reversed(found))

    # What its journals tell it.

    def _grown(self, journal: Journal, size: int) -> None:
        if not size:
            return
        self._count(journal, size)
        self._journals[journal] = None
        self._journals.move_to_end(journal)
        while self._used > self.budget:
            if self._pages:
                self._drop_page()
            else:
                self._lose(self._heaviest())

    def _heaviest(self) -> Journal:
        """The journal to drop: of the group that holds most and its owner that holds most, the one written to
        the longest ago."""
        group = self._held_by_group.most_common(1)[0][0]
        most = max(held for (each, _), held in self._held.items() if each == group)
        return next(
            each for each in self._journals if each.group == group and self._held[group, each.owner] == most
        )

    def _lose(self, journal: Journal) -> None:
        journal.close()
        self._lost += 1

    def _drop_page(self) -> None:
        self._used -= len(self._pages.pop(self._kept.pop()))

    def _shrunk(self, journal: Journal, size: int) -> None:
        self._count(journal, -size)
        if not len(journal):
            self._journals.pop(journal, None)

    def _count(self, journal: Journal, size: int) -> None:
        group = journal.group
        owner = group, journal.owner
        self._used += size
        self._held[owner] = held = self._held[owner] + size
        if not held:
            del self._held[owner]
        self._held_by_group[group] = held = self._held_by_group[group] + size
        if not held:
            del self._held_by_group[group]
