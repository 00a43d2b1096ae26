"""What sessions over some blocks cost in bytes, and how a node's memory is divided into pages and states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ....shards.formats.blocks.block import BlockConfig
from ....shards.layers.kv_pool import largest_slot
from ....shards.layers.state_pool import largest_state
from .kv_layout import ALL_PAGES, KvLayout

SESSION_TOKENS = 4096
"""There are states for a session for each SESSION_TOKENS tokens of KV cache: a long answer, or a chat."""
USUAL_SESSIONS = 8
"""Where nobody says how many tokens there shall be, states for this many sessions are meant to find room
beside one whole context: more than a machine at home has at once."""


class PoolSize(NamedTuple):
    """Slots for pages of keys and values, each of one block, and slots for states of one block."""

    slots: int
    states: int


class SessionBytes(NamedTuple):
    """What a session costs: ``fixed`` however long it is, as states and windows do; and ``per_token``."""

    fixed: int
    per_token: int


@dataclass(frozen=True, slots=True)
class SpanMemory:
    """What sessions over blocks between allowed cuts take. ``slot_bytes`` and ``state_bytes``: of one slot,
    0 where none is needed."""

    layout: KvLayout
    slot_bytes: int
    state_bytes: int

    @classmethod
    def of(cls, blocks: Sequence[BlockConfig], batch_tokens: int, kv_dtype: str) -> SpanMemory:
        """``batch_tokens``: most tokens of one session in a batch. Raises UsageError for an unknown
        ``kv_dtype``."""
        layout = KvLayout.of(blocks, batch_tokens)
        slot = largest_slot(blocks, kv_dtype) if layout.groups else 0
        return cls(layout, slot, largest_state(blocks))

    @classmethod
    def each(cls, blocks: Sequence[BlockConfig], batch_tokens: int, kv_dtype: str) -> list[SpanMemory]:
        """Of each block alone, in a span of all: their slots are as large as the largest needs."""
        whole = cls.of(blocks, batch_tokens, kv_dtype)
        return [replace(whole, layout=KvLayout.of([block], batch_tokens)) for block in blocks]

    def session_cost(self, context: int) -> SessionBytes:
        """Of sessions of up to ``context`` tokens that are long enough to fill their windows and states."""
        growing = sum(group.blocks for group in self.layout.groups if group.most >= ALL_PAGES)
        pages = -(-context // self.layout.page_tokens)
        fixed = self.session_bytes(context) - growing * pages * self.slot_bytes
        return SessionBytes(fixed, growing * self.slot_bytes // self.layout.page_tokens)

    def session(self, tokens: int) -> PoolSize:
        """What one session of ``tokens`` tokens takes."""
        return PoolSize(self.layout.slots_of(tokens), self.layout.states_of(tokens))

    def session_bytes(self, tokens: int) -> int:
        """Of one session of ``tokens`` tokens, pages and states together."""
        return self.bytes_of(self.session(tokens))

    def bytes_of(self, size: PoolSize) -> int:
        return size.slots * self.slot_bytes + size.states * self.state_bytes

    def for_tokens(self, tokens: int, context: int) -> PoolSize:
        """For sessions that have ``tokens`` tokens together, each up to ``context``, with states for as many
        as SESSION_TOKENS suggests."""
        usual = min(max(1, context), SESSION_TOKENS)
        states = -(-tokens // usual) * self.layout.states_of(min(tokens, usual))
        return PoolSize(self.layout.slots_for(tokens, context), states)

    def usual(self, context: int) -> PoolSize:
        """What a node that was not told should have at least: one whole context, and states for
        USUAL_SESSIONS sessions, or for fewer where a context is short."""
        sessions = min(-(-context // SESSION_TOKENS), USUAL_SESSIONS)
        states = sessions * self.layout.states_of(min(context, SESSION_TOKENS))
        return PoolSize(self.layout.slots_of(context), states)

    def within(self, budget: int, context: int) -> PoolSize:
        """As many as ``budget`` bytes hold, but room for one token and one session's states at least. Beside
        pages, states take half of it at most, and leave room for those of one whole context if it fits."""
        layout, usual = self.layout, min(max(1, context), SESSION_TOKENS)
        states = layout.states_of(usual)
        if states:
            sessions = budget // self.session_bytes(usual)
            if self.slot_bytes:
                most = budget // 2
                if self.session_bytes(context) <= budget:
                    most = min(most, budget - layout.slots_of(context) * self.slot_bytes)
                sessions = min(sessions, most // (states * self.state_bytes))
            states *= max(1, sessions)
        slots = max(0, budget - states * self.state_bytes) // self.slot_bytes if self.slot_bytes else 0
        return PoolSize(max(layout.slots_of(1), slots), states)
