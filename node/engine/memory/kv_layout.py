"""How much memory a session needs in each of its blocks: slots for pages of keys and values, and slots for
states. Plain ints.

Blocks that see all tokens need a page for every page of tokens; those that read another block's keys and
values need none. Those that see only the last ones, or those of a chunk, use a few pages again and again: a
session holds what a token sees there, what one batch may add, and ROLLBACK_TOKENS. Blocks that keep a state
need MOST_STATES slots, however long the session is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ....shards.formats.blocks.block import BlockConfig
from ....swarm.figures import MOST_AHEAD
from ....swarm.protocol.field_types import PAGE_TOKENS

Rows = slice | list[int]

ROLLBACK_TOKENS = 64
"""What blocks with a window hold beside what a token sees and what a batch may add: a session of states goes
back by MOST_AHEAD_OF_STATES tokens, and feeds 31 more again, as a state is only held for the end of a page.
With less room in a batch they hold more: any session may go back by MOST_AHEAD."""
ALL_PAGES = 2**31
"""More pages than a session can have."""
MOST_STATES = 4
"""Pages of which a session holds the state: the one it writes, the two before, so that it can go back by
MOST_AHEAD_OF_STATES from anywhere in a page, and the one before these."""
UNBOUND_SESSIONS = 64
"""What a span without any cache has room for: sessions of a whole context, as far as announcements tell."""


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Blocks that see equally far: a token sees ``reach`` tokens, itself included; 0: all before it.

    ``rows``: their rows in a session's table; ``blocks``: how many these are. ``most``: pages of
    ``page_tokens`` tokens that a session holds at once in each of them.
    """

    rows: Rows
    blocks: int
    reach: int
    most: int
    page_tokens: int

    def first_seen(self, position: int) -> int:
        """The first page that a token at ``position`` sees."""
        return max(0, position - self.reach + 1) // self.page_tokens if self.reach else 0


@dataclass(frozen=True, slots=True)
class StateGroup:
    """Blocks that keep a state: ``rows`` of a session's table of states, ``blocks`` of them.

    ``most``: pages of ``page_tokens`` tokens of which a session holds the state at once.
    """

    rows: Rows
    blocks: int
    page_tokens: int
    most: int = MOST_STATES


class KvLayout:
    """The groups of one span's blocks, by ``reaches`` of these, None for one that caches nothing.
    ``batch_tokens``: most tokens of one session in a batch. ``states``: rows of blocks that keep a state.

    ``most`` counts one page more than these tokens need: the first one may begin anywhere in its page.
    """

    def __init__(
        self,
        reaches: Iterable[int | None],
        batch_tokens: int,
        *,
        states: Iterable[int] = (),
        page_tokens: int = PAGE_TOKENS,
        rollback_tokens: int = ROLLBACK_TOKENS,
    ) -> None:
        self.page_tokens = page_tokens
        rows: dict[int, list[int]] = {}
        reaches = [*reaches]
        for row, reach in enumerate(reaches):
            if reach is not None:
                rows.setdefault(reach, []).append(row)
        self.groups = tuple(
            KvGroup(
                _whole(rows[reach], len(reaches)),
                len(rows[reach]),
                reach,
                self._pages(reach + batch_tokens + rollback_tokens) + 1 if reach else ALL_PAGES,
                page_tokens,
            )
            for reach in sorted(rows)
        )
        self.blocks = sum(group.blocks for group in self.groups)
        kept = [*states]
        self.states = StateGroup(_whole(kept, len(reaches)), len(kept), page_tokens) if kept else None

    @classmethod
    def of(cls, blocks: Iterable[BlockConfig], batch_tokens: int) -> KvLayout:
        """Of a span between allowed cuts, which holds what its blocks read."""
        blocks = [*blocks]
        reaches = (
            block.attention.reach if block.attention and block.kv_of is None else None for block in blocks
        )
        states = (row for row, block in enumerate(blocks) if block.state is not None)
        rollback_tokens = max(ROLLBACK_TOKENS, MOST_AHEAD + PAGE_TOKENS - batch_tokens)
        return cls(reaches, batch_tokens, states=states, rollback_tokens=rollback_tokens)

    def slots_of(self, tokens: int) -> int:
        """Slots of one session of ``tokens`` tokens."""
        pages = self._pages(tokens)
        return sum(min(pages, group.most) * group.blocks for group in self.groups)

    def states_of(self, tokens: int) -> int:
        """Slots for states of one session of ``tokens`` tokens."""
        group = self.states
        return min(self._pages(tokens), group.most) * group.blocks if group else 0

    def slots_for(self, tokens: int, context: int) -> int:
        """Slots of sessions that have ``tokens`` tokens together, each up to ``context``."""
        sessions, rest = divmod(self._pages(tokens), max(1, self._pages(context)))
        return sessions * self.slots_of(context) + self.slots_of(rest * self.page_tokens)

    def tokens_in(self, slots: int, states: int, context: int) -> int:
        """Tokens, in whole pages, of sessions for which ``slots`` and ``states`` slots do: one of up to
        ``context`` tokens finds room exactly if it is not longer than that."""
        context = max(1, context)
        pages = self._pages(context)
        bounds: list[int] = []
        if self.groups:
            sessions, rest = divmod(slots, self.slots_of(context))
            bounds.append(sessions * pages + self._pages_in(rest))
        if self.states is not None:
            sessions, rest = divmod(states, self.states_of(context))
            bounds.append(sessions * pages + rest // self.states.blocks)
        return min(bounds, default=UNBOUND_SESSIONS * pages) * self.page_tokens

    def _pages_in(self, slots: int) -> int:
        """Pages of the longest session for which ``slots`` do, if there is a longest one."""
        pages, left = 0, slots
        growing = self.blocks
        for group in sorted(self.groups, key=lambda group: group.most):
            more = min(left // growing, group.most - pages)
            pages, left = pages + more, left - more * growing
            if pages < group.most:
                break
            growing -= group.blocks
        return pages

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.page_tokens)


def _whole(rows: list[int], of: int) -> Rows:
    return slice(None) if len(rows) == of else rows
