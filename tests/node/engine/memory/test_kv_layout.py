"""How many slots a session takes where blocks read another block's keys and values."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node.engine.memory.kv_layout import UNBOUND_SESSIONS, KvLayout
from swarm_node.node.engine.memory.span_memory import SESSION_TOKENS, SpanMemory
from swarm_node.shards.formats.blocks.state import ShortConvConfig
from tests.shards.models.block_cases import attention, block

PLAIN, WINDOW = block(), block(attention(window=20))


def test_blocks_that_read_anothers_take_no_pages() -> None:
    own = KvLayout.of([PLAIN, WINDOW], 64)
    reading = [replace(PLAIN, kv_of=0), replace(WINDOW, kv_of=1), replace(PLAIN, kv_of=0)]
    layout = KvLayout.of([PLAIN, WINDOW, *reading], 64)
    assert (layout.blocks, own.blocks) == (2, 2)
    assert [group.rows for group in layout.groups] == [[0], [1]]
    for tokens in (1, 33, 1000):
        assert layout.slots_of(tokens) == own.slots_of(tokens)
        assert layout.slots_for(tokens, 256) == own.slots_for(tokens, 256)


def test_rows_of_a_table_are_left_out_in_between() -> None:
    layout = KvLayout.of([PLAIN, replace(PLAIN, kv_of=0), PLAIN], 64)
    (group,) = layout.groups
    assert (group.rows, group.blocks) == ([0, 2], 2)
    whole = KvLayout.of([PLAIN, PLAIN], 64)
    assert whole.groups[0].rows == slice(None)


def test_a_block_alone_that_reads_anothers_costs_nothing() -> None:
    assert KvLayout.of([replace(PLAIN, kv_of=0)], 64).slots_of(1000) == 0


STATE = replace(PLAIN, attention=None, state=ShortConvConfig(64, 4))
BOTH = replace(PLAIN, state=ShortConvConfig(64, 4))
NEITHER = replace(PLAIN, attention=None)


def test_a_state_costs_a_session_the_same_however_long_it_is() -> None:
    layout = KvLayout.of([STATE, PLAIN, BOTH, NEITHER], 64)
    assert layout.states is not None
    assert (layout.states.rows, layout.states.blocks, layout.blocks) == ([0, 2], 2, 2)
    assert [layout.states_of(tokens) for tokens in (1, 33, 129, 10_000)] == [2, 4, 8, 8]
    assert layout.slots_of(33) == 4


def test_tokens_are_those_for_which_pages_and_states_do() -> None:
    layout = KvLayout.of([STATE, PLAIN], 64)
    assert layout.tokens_in(100, 8, 320) == 640  # states of two sessions
    assert layout.tokens_in(12, 8, 320) == 384
    assert layout.tokens_in(100, 2, 320) == 64
    assert layout.tokens_in(100, 0, 320) == 0
    assert KvLayout.of([STATE], 64).tokens_in(0, 9, 320) == 672
    assert KvLayout.of([NEITHER], 64).tokens_in(0, 0, 320) == UNBOUND_SESSIONS * 320


@given(st.lists(st.sampled_from([PLAIN, WINDOW, STATE, BOTH, NEITHER]), min_size=1, max_size=6), st.data())
def test_a_session_finds_room_exactly_if_it_is_not_longer_than_what_is_free(blocks, data) -> None:
    layout, context = KvLayout.of(blocks, 64), data.draw(st.integers(1, 900))
    slots, states = data.draw(st.integers(0, 60)), data.draw(st.integers(0, 20))
    free = layout.tokens_in(slots, states, context)
    for tokens in range(1, context + 1, 16):
        fits = layout.slots_of(tokens) <= slots and layout.states_of(tokens) <= states
        assert fits == (tokens <= free)


@given(st.lists(st.sampled_from([PLAIN, WINDOW, STATE, BOTH, NEITHER]), min_size=1, max_size=6), st.data())
def test_memory_is_divided_so_that_a_session_always_finds_room(blocks, data) -> None:
    memory = SpanMemory.of(blocks, 64, "float16")
    context, budget = data.draw(st.integers(1, 20_000)), data.draw(st.integers(0, 2**28))
    size = memory.within(budget, context)
    least = memory.session(min(context, SESSION_TOKENS)).states * memory.state_bytes
    least += memory.layout.slots_of(1) * memory.slot_bytes
    assert memory.bytes_of(size) <= max(budget, least)
    assert memory.layout.tokens_in(*size, context) >= 1
    if memory.session_bytes(context) <= budget:
        assert memory.layout.tokens_in(*size, context) >= context
    asked = memory.for_tokens(tokens := data.draw(st.integers(1, 50_000)), context)
    assert memory.layout.tokens_in(*asked, context) >= min(tokens, context)


def test_bytes_of_a_session_are_those_of_its_pages_and_its_states() -> None:
    memory = SpanMemory.of([STATE, PLAIN], 64, "float16")
    state = 4 * 3 * 64
    assert memory.state_bytes == state
    assert memory.session_bytes(320) == 10 * memory.slot_bytes + 4 * state
    assert memory.within(1000 * memory.session_bytes(320), 320).states == 4000
