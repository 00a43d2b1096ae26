"""How many slots a session takes where blocks read another block's keys and values."""

from __future__ import annotations

from dataclasses import replace

from swarm_node.node.engine.memory.kv_layout import KvLayout
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
