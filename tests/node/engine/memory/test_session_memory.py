"""Both pools together: a session gets all that it needs of them, or nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node.engine.memory.session_memory import Holdings, SessionMemory
from swarm_node.node.engine.memory.span_memory import PoolSize
from swarm_node.node.limits.admission import Admission
from swarm_node.shards.formats.blocks.state import ShortConvConfig
from swarm_node.swarm.errors import LocalProtocolError, UsageError
from swarm_node.swarm.fairness.shares import Holder
from swarm_node.swarm.types import Span
from tests.shards.models.block_cases import attention, block

PLAIN, WINDOW = block(), block(attention(window=20))
STATE = replace(PLAIN, attention=None, state=ShortConvConfig(64, 4))
BOTH, NEITHER = replace(PLAIN, state=ShortConvConfig(64, 4)), replace(PLAIN, attention=None)
CONTEXT = 320
NAMES = tuple(bytes([number]) for number in range(10))


def memory_of(blocks: list, slots: int, states: int) -> SessionMemory:
    return SessionMemory(blocks, Span(0, len(blocks)), CONTEXT, 64, PoolSize(slots, states))


def is_empty(memory: SessionMemory) -> bool:
    pools = (memory.pages, memory.states)
    return not any(pool.used or pool.reserved for pool in pools)


@given(
    st.lists(st.sampled_from([PLAIN, WINDOW, STATE, BOTH, NEITHER]), min_size=1, max_size=5),
    st.integers(30, 200),
    st.integers(20, 60),
    st.lists(st.integers(1, CONTEXT), max_size=8),
)
def test_what_is_free_is_what_a_session_gets(blocks, slots, states, sessions) -> None:
    memory = memory_of(blocks, slots, states)
    span, held = Span(0, len(blocks)), []
    assert memory.free_tokens(span) == memory.total_tokens
    for tokens in sessions:
        free, cells = memory.free_tokens(span), memory.cells_of(tokens, span)
        fits = cells <= memory.free_cells
        holdings = memory.open(span, tokens)
        assert (holdings is not None) == (tokens <= free)
        assert holdings is not None or not fits
        if holdings is not None:
            assert cells <= memory.total_cells
            held.append(holdings)
    for holdings in held:
        holdings.release()
    assert is_empty(memory)
    assert memory.tokens_of(memory.total_cells, span) == memory.total_tokens


def test_a_peers_share_is_of_states_where_these_are_scarcer() -> None:
    memory, span = memory_of([STATE, PLAIN], 4000, 16), Span(0, 2)
    admission = Admission(memory.total_cells, 100, kv_share_per_peer=0.5)
    cells = memory.cells_of(160, span)
    assert 2 * cells <= admission.most_cells < 3 * cells  # two of four sessions, and 5 of 4000 pages each
    assert memory.tokens_of(admission.most_cells, span) == 2 * CONTEXT
    assert memory.tokens_of(admission.most_cells, Span(1, 2)) == 2000 * 32


def test_a_span_that_caches_nothing_knows_every_beginning() -> None:
    memory, span = memory_of([NEITHER, PLAIN], 10, 0), Span(0, 1)
    assert memory.find("owner", span, NAMES).count == len(NAMES)
    holdings = memory.open(span, 400, memory.find("owner", span, NAMES))
    assert holdings is not None
    assert holdings.pages.n_pages == len(NAMES)
    assert holdings.pages.write(320, 80, waiting=None) == []
    with pytest.raises(LocalProtocolError):
        holdings.pages.write(500, 1, waiting=None)
    fork = memory.fork(holdings, span, 330, 400, 400)
    assert fork is not None
    assert fork.pages.n_pages == 11
    assert memory.cells_of(400, span) == 0


def named(memory: SessionMemory, span: Span, pages: int) -> Holdings:
    holdings = memory.open(span, CONTEXT)
    assert holdings is not None
    holdings.pages.write(0, 32 * pages, waiting=None)
    assert holdings.states is not None
    holdings.states.write(0, 32 * pages)
    for index in range(pages):
        memory.register(Holder("owner"), span, NAMES[:pages], index, holdings, [], long_context=False)
    return holdings


def test_a_beginning_is_known_as_far_as_pages_and_a_state_are() -> None:
    memory, span = memory_of([STATE, PLAIN], 40, 20), Span(0, 2)
    named(memory, span, 6).release()
    named(memory, Span(0, 1), 4).release()  # of another span
    assert [memory.find("owner", span, NAMES[:count]).count for count in (4, 6, 10)] == [0, 6, 6]
    assert memory.find("other", span, NAMES).count == 0
    assert memory.find("owner", span, NAMES, long_context=True).count == 0
    state = memory.find("owner", span, NAMES).state
    assert state is not None
    memory.state_names.unregister(state)
    assert memory.find("owner", span, NAMES).count == 0
    assert is_empty(memory)


def test_a_window_and_a_state_of_one_page_have_names_of_their_own() -> None:
    memory, span = (
        memory_of([STATE, replace(WINDOW, attention=attention(window=33)), PLAIN], 60, 20),
        Span(0, 3),
    )
    holdings = named(memory, span, 6)
    known = memory.find("owner", span, NAMES)
    assert known.count == 6
    assert known.state not in [page for pages in known.pages for page in pages]
    holdings.release()
    assert is_empty(memory)


def test_who_finds_no_room_for_states_holds_no_pages() -> None:
    memory, span = memory_of([STATE, PLAIN], 100, 6), Span(0, 2)
    first = named(memory, span, 5)
    used = memory.pages.used, memory.pages.reserved
    assert memory.open(span, CONTEXT) is None
    assert memory.fork(first, span, 150, 160, CONTEXT) is None
    assert (memory.pages.used, memory.pages.reserved) == used
    first.release()
    assert is_empty(memory)


def test_pools_without_room_for_a_token_are_refused() -> None:
    for slots, states in ((0, 4), (4, 0)):
        with pytest.raises(UsageError):
            memory_of([STATE, PLAIN], slots, states)
    assert memory_of([NEITHER], 0, 0).total_tokens > 0
