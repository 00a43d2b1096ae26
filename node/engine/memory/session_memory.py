"""Memory of all sessions of a node: who gets what of its two pools, for pages and for states."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ....shards.formats.blocks.block import BlockConfig
from ....swarm.errors import LocalProtocolError, UsageError
from ....swarm.fairness.shares import Holder
from ....swarm.protocol.field_types import PAGE_TOKENS
from ....swarm.types import Span
from .kv_layout import KvLayout
from .page_allocator import Page, PageAllocator
from .page_tables import PageTable
from .prefix_cache import Known, PrefixCache
from .scratch import Scratch
from .span_memory import PoolSize
from .state_table import StateTable


@dataclass(frozen=True, slots=True)
class Holdings:
    """What one session holds, or may still take. ``states``: None where its blocks keep none."""

    pages: PageTable
    states: StateTable | None

    def release(self) -> None:
        """Give everything back."""
        self.pages.release()
        if self.states is not None:
            self.states.release()


class SessionMemory:
    """Both pools of a node that serves ``span`` of a model's ``blocks``, with slots as ``size`` says.
    ``context``: the model's longest; ``batch_tokens``: most tokens of one session in a batch.

    A *cell* is the room of one token in one block. What a session takes of the states is counted as the same
    part of all cells, where that is the larger part.
    """

    def __init__(
        self, blocks: Sequence[BlockConfig], span: Span, context: int, batch_tokens: int, size: PoolSize
    ) -> None:
        """Raises UsageError where there is no room for a token."""
        self._blocks, self._span = blocks, span
        self._context, self._batch_tokens = context, batch_tokens
        self._layouts: dict[Span, KvLayout] = {}
        layout = self.layout(span)
        if size.slots < layout.slots_of(1) or size.states < layout.states_of(1):
            raise UsageError(
                f"a KV pool of {size.slots} slots and {size.states} states holds no page of blocks {span}"
            )
        self.pages, self.states = PageAllocator(size.slots), PageAllocator(size.states)
        self.page_names, self.state_names = PrefixCache(self.pages), PrefixCache(self.states)
        self.scratch = Scratch(self.pages)
        self.total_cells = max(1, size.slots or size.states) * PAGE_TOKENS

    def layout(self, span: Span) -> KvLayout:
        layout = self._layouts.get(span)
        if layout is None:
            blocks = self._blocks[span.start : span.end]
            layout = self._layouts[span] = KvLayout.of(blocks, self._batch_tokens)
        return layout

    # How much there is.

    @property
    def total_tokens(self) -> int:
        """Tokens of sessions over the whole span that both pools hold."""
        return self.layout(self._span).tokens_in(self.pages.total, self.states.total, self._context)

    @property
    def state_sessions(self) -> int:
        """For how many sessions of a whole context over the whole span there are states; 0: no block keeps
        one."""
        return self._sessions(self.states.total)

    @property
    def free_state_sessions(self) -> int:
        """For how many more such sessions there are states now."""
        return self._sessions(self.states.available)

    @property
    def cached_tokens(self) -> int:
        """Tokens for which the slots do that only the prefix cache holds."""
        layout = self.layout(self._span)
        slots, states = self.pages.cached, self.states.cached
        return layout.tokens_in(slots, states, self._context) if slots or states else 0

    def free_tokens(self, span: Span) -> int:
        """Tokens that sessions over ``span`` could still be opened for."""
        return self.layout(span).tokens_in(self.pages.available, self.states.available, self._context)

    def tokens_of(self, cells: int, span: Span) -> int:
        """Tokens of sessions over ``span`` for which ``cells`` do."""
        states = cells * self.states.total // self.total_cells
        return self.layout(span).tokens_in(cells // PAGE_TOKENS, states, self._context)

    @property
    def free_cells(self) -> int:
        """Cells that sessions could still be opened for."""
        free = self.pages.available * PAGE_TOKENS if self.pages.total else self.total_cells
        if self.states.total:
            free = min(free, self.states.available * self.total_cells // self.states.total)
        return free

    def cells_of(self, tokens: int, span: Span) -> int:
        """Cells that a session of ``tokens`` tokens over ``span`` takes at most."""
        layout = self.layout(span)
        slots, states = layout.slots_of(tokens), layout.states_of(tokens)
        part = -(-states * self.total_cells // self.states.total) if states else 0
        return max(slots * PAGE_TOKENS, part)

    def could_ever_fit(self, tokens: int, span: Span) -> bool:
        """Whether there is room for such a session where there is no other one."""
        layout = self.layout(span)
        return layout.slots_of(tokens) <= self.pages.total and layout.states_of(tokens) <= self.states.total

    # Who has it.

    def find(self, owner: str, span: Span, names: Sequence[bytes], *, long_context: bool = False) -> Known:
        """See ``PrefixCache.find``."""
        layout = self.layout(span)
        states = None
        if layout.states is not None:
            states = self.state_names.ends(owner, span, names, long_context=long_context)
            names = names[: max(states, default=0)]
        return self.page_names.find(owner, span, layout, names, long_context=long_context, states=states)

    def open(self, span: Span, max_tokens: int, known: Known | None = None) -> Holdings | None:
        """What a session for ``max_tokens`` tokens holds that begins with what is ``known``. None: no
        room."""
        layout = self.layout(span)
        pages = PageTable.open(self.pages, self.page_names, layout, max_tokens, known)
        shared = {known.count - 1: known.state} if known is not None and known.state is not None else {}
        return self._with_states(pages, layout, shared)

    def fork(
        self, parent: Holdings, span: Span, tokens: int, length: int, max_tokens: int
    ) -> Holdings | None:
        """What a session holds that shares the first ``tokens`` tokens of a parent, which has ``length``.
        None: no room. A state within a page is not shared: it is computed again from that before the page.
        Raises LocalProtocolError where the parent does not hold what is shared."""
        shared: dict[int, Page] = {}
        seen_from = tokens
        if parent.states is not None:
            if not parent.states.begins_at(tokens):
                raise LocalProtocolError(f"a fork of {tokens} tokens is not possible: a state is not held")
            shared, seen_from = parent.states.before(tokens), tokens - tokens % PAGE_TOKENS
        pages = parent.pages.fork(tokens, length, max_tokens, seen_from=seen_from)
        return self._with_states(pages, self.layout(span), shared)

    def begin_lower(self, holdings: Holdings, known: Known) -> bool:
        """Hold what is ``known`` and what it sees, in blocks that do not see all; False, and nothing changed,
        where there is no room for that beside what is held. No step must be under way."""
        if not holdings.pages.begin_lower(known):
            return False
        if holdings.states is not None:
            holdings.states.begin_lower(known.count - 1, known.state)
        return True

    def register(
        self,
        owner: Holder,
        span: Span,
        names: Sequence[bytes],
        index: int,
        holdings: Holdings,
        waiting: Collection[int],
        *,
        long_context: bool,
    ) -> None:
        """Tell the cache of page ``index`` of all that ``names`` has, which will not change any more.
        ``waiting``: where the session's steps that are under way start."""
        for group, page in holdings.pages.at(index):
            self.page_names.register(owner, span, group, names[index], page, long_context=long_context)
        if (states := holdings.states) is None:
            return
        if (state := states.to_name(index, last=index + 1 == len(names))) is not None:
            self.state_names.register(owner, span, None, names[index], state, long_context=long_context)
            states.named(index, waiting)

    def _sessions(self, states: int) -> int:
        each = self.layout(self._span).states_of(self._context)
        return states // each if each else 0

    def _with_states(
        self, pages: PageTable | None, layout: KvLayout, shared: dict[int, Page]
    ) -> Holdings | None:
        if pages is None or layout.states is None:
            return None if pages is None else Holdings(pages, None)
        states = StateTable.open(self.states, self.state_names, layout.states, pages.max_pages, shared)
        if states is None:
            pages.release()
            return None
        return Holdings(pages, states)
