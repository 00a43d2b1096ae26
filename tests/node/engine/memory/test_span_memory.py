"""What sessions cost, reckoned by hand, in blocks of the shapes that Qwen3.5-35B-A3B has."""

from __future__ import annotations

from dataclasses import replace

from swarm_node.node.engine.memory.span_memory import USUAL_SESSIONS, SessionBytes, SpanMemory
from swarm_node.node.resources import default_kv_bytes
from swarm_node.shards.formats.blocks.attention import AttentionConfig
from swarm_node.shards.formats.blocks.block import BlockConfig
from swarm_node.shards.formats.blocks.mlp import MlpConfig
from swarm_node.shards.formats.blocks.norm import NormConfig
from swarm_node.shards.formats.blocks.state import RecurrenceConfig

BATCH, CONTEXT = 512, 262_144
NORM = NormConfig(1e-6)
DELTA = RecurrenceConfig(
    heads=32,
    key_heads=16,
    key_dim=128,
    value_dim=128,
    taps=4,
    rule="delta",
    norm=NORM,
    norm_groups=32,
    norm_shared=True,
)
ATTENDS = BlockConfig(AttentionConfig(16, 2, 256, 256**-0.5, None), MlpConfig(512), norm=NORM, mlp_norm=NORM)
KEEPS = replace(ATTENDS, attention=None, state=DELTA)
STATE = 4 * (32 * 128 * 128 + 3 * (2 * 16 * 128 + 32 * 128))
"""Matrices of 32 heads, and three inputs of the convolution for queries, keys and values: 2.2 MB."""
TOKEN = 2 * 2 * 256 * 2
"""Keys and values, two heads of 256, float16."""


def test_a_hybrid_model() -> None:
    memory = SpanMemory.of([KEEPS, KEEPS, KEEPS, ATTENDS] * 10, BATCH, "float16")
    assert memory.state_bytes == STATE == 2_195_456
    assert memory.session_cost(CONTEXT) == SessionBytes(30 * 4 * STATE, 10 * TOKEN)
    assert memory.session_bytes(CONTEXT) == 30 * 4 * STATE + CONTEXT * 10 * TOKEN


def test_blocks_of_one_kind() -> None:
    assert SpanMemory.of([KEEPS] * 3, BATCH, "float16").session_cost(CONTEXT) == (3 * 4 * STATE, 0)
    assert SpanMemory.of([ATTENDS] * 3, BATCH, "float16").session_cost(CONTEXT) == (0, 3 * TOKEN)
    none = replace(ATTENDS, attention=None)
    assert SpanMemory.of([none], BATCH, "float16").session_cost(CONTEXT) == (0, 0)


def test_a_window_costs_the_same_however_long_a_session_is() -> None:
    sees = replace(ATTENDS, attention=replace(ATTENDS.attention, window=1024))
    memory = SpanMemory.of([sees, ATTENDS], BATCH, "float16")
    pages = (1024 + BATCH + 64) // 32 + 1
    assert memory.session_cost(CONTEXT) == SessionBytes(pages * 32 * TOKEN, TOKEN)


def test_each_block_is_counted_as_part_of_a_span_of_all() -> None:
    wide = replace(ATTENDS, attention=replace(ATTENDS.attention, kv_heads=4))
    both = replace(ATTENDS, state=DELTA)
    blocks = [ATTENDS, wide, KEEPS, both]
    each = SpanMemory.each(blocks, BATCH, "float16")
    context = 3200
    pages = context * 2 * TOKEN  # slots are as large as the wide block needs
    assert [one.session_bytes(context) for one in each] == [pages, pages, 4 * STATE, pages + 4 * STATE]
    assert sum(one.session_bytes(context) for one in each) == SpanMemory.of(
        blocks, BATCH, "float16"
    ).session_bytes(context)


def test_a_node_that_was_not_told_has_states_for_several_sessions() -> None:
    """Beside one whole context, though that takes twenty times what a session's states do."""
    memory = SpanMemory.of([KEEPS, KEEPS, KEEPS, ATTENDS] * 10, BATCH, "float16")
    least = memory.usual(CONTEXT)
    assert least == (10 * CONTEXT // 32, USUAL_SESSIONS * 30 * 4)
    assert memory.bytes_of(least) == CONTEXT * 10 * TOKEN + USUAL_SESSIONS * 30 * 4 * STATE
    size = memory.within(default_kv_bytes(2 * memory.bytes_of(least), memory.bytes_of(least)), CONTEXT)
    assert size == least
    assert memory.layout.tokens_in(*size, CONTEXT) == CONTEXT
    assert memory.usual(1000).states == 30 * 4
