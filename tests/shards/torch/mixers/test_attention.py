"""The plain torch path over pages, against softmax written out over what the pool holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from swarm_node.shards.layers.kv_pool import KV_DTYPES, BatchSlice
from swarm_node.shards.torch.mixers.attention import PagedAttention
from swarm_node.swarm.errors import LocalProtocolError
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from tests.shards.torch.kv_cases import PagedSession, shuffled_sessions, softmax_attention, stored, used_pool


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (4, 4, 20), (8, 1, 13)])
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 2e-2)])
def test_every_path_matches_plain_softmax(heads, kv_heads, head_dim, kv_dtype, dtype, tolerance):
    """Decode alone and in a batch, prompts from the start, chunks that begin and end within pages, more than
    QUERY_ROWS rows, sessions that hold different blocks."""
    torch.manual_seed(0)
    rounds = [[(0, 1)], [(0, 300), (1, 2), (2, 1)], [(0, 1), (1, 130), (2, 1)], [(2, 1)], [(1, 5), (0, 140)]]
    sessions, n_slots = shuffled_sessions([(3, 2, 500), (1, 4, 500), (2, 3, 500)])
    pool, plain = used_pool(n_slots, kv_heads, head_dim, kv_dtype)
    for chunks in rounds:
        slices, row = [], 0
        for key, count in chunks:
            slices.append(sessions[key].part(row, count))
            row += count
        attend = PagedAttention(pool, slices, dtype)
        for block in (3, 4):
            # Views of a fused product, as the blocks pass them.
            fused = torch.randn(row, heads + 2 * kv_heads, head_dim).to(dtype)
            q, k, v = fused.split([heads, kv_heads, kv_heads], 1)
            out = attend(block, plain, q, k, v)
            assert out.shape == (row, heads * head_dim)
            assert out.dtype == dtype
            for part, (key, _) in zip(slices, chunks, strict=True):
                rows = slice(part.row, part.row + part.count)
                held = stored(pool.part(plain.kv), sessions[key], block, part.start + part.count)
                wanted = softmax_attention(q[rows], *held, part.start)
                torch.testing.assert_close(out[rows].double(), wanted, atol=tolerance, rtol=tolerance)
        for key, count in chunks:
            sessions[key].length += count


def test_a_rollback_overwrites_what_was_there():
    torch.manual_seed(1)
    (session,), n_slots = shuffled_sessions([(0, 1, 16)])
    pool, plain = used_pool(n_slots, 2, 8, "float32")
    q, k, v = torch.randn(8, 4, 8), torch.randn(8, 2, 8), torch.randn(8, 2, 8)
    PagedAttention(pool, [session.part(0, 8)], torch.float32)(0, plain, q, k, v)
    session.length = 3
    new_q, new_k, new_v = torch.randn(2, 4, 8), torch.randn(2, 2, 8), torch.randn(2, 2, 8)
    out = PagedAttention(pool, [session.part(0, 2)], torch.float32)(0, plain, new_q, new_k, new_v)
    wanted = softmax_attention(new_q, torch.cat([k[:3], new_k]), torch.cat([v[:3], new_v]), 3)
    torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)


def test_pages_can_be_shared_and_copied_before_writing():
    """Two sessions read one page; one of them copies it, writes on, and the other sees nothing of that."""
    torch.manual_seed(2)
    pool, plain = used_pool(4, 1, 8, "float16")
    first = PagedSession(np.array([[2, 0]], np.int32), 0)
    q, k, v = torch.randn(40, 2, 8), torch.randn(40, 1, 8), torch.randn(40, 1, 8)
    PagedAttention(pool, [first.part(0, 40)], torch.float32)(0, plain, q, k, v)
    first.length = 40
    pool.copy_slots([0], [3])
    second = PagedSession(np.array([[2, 3]], np.int32), 0, 36)
    slices = [first.part(0, 1), second.part(1, 2)]
    q, k, v = torch.randn(3, 2, 8), torch.randn(3, 1, 8), torch.randn(3, 1, 8)
    out = PagedAttention(pool, slices, torch.float32)(0, plain, q, k, v)
    for session, rows, start in ((first, slice(0, 1), 40), (second, slice(1, 3), 36)):
        held = stored(pool.part(plain.kv), session, 0, start + len(q[rows]))
        wanted = softmax_attention(q[rows], *held, start)
        torch.testing.assert_close(out[rows].double(), wanted, atol=1e-5, rtol=1e-5)
    keys, others = (stored(pool.part(plain.kv), session, 0, 38)[0] for session in (first, second))
    assert not torch.equal(keys[36:], others[36:])


def test_slices_must_be_the_batch():
    (session,), n_slots = shuffled_sessions([(0, 1, PAGE_TOKENS)])
    pool, plain = used_pool(n_slots, 1, 8, "float32")
    attend = PagedAttention(pool, [session.part(0, 3)], torch.float32)
    x = torch.zeros(4, 1, 8)
    with pytest.raises(LocalProtocolError, match="3 rows for a batch of 4"):
        attend(0, plain, x, x, x)


def test_a_table_may_be_longer_than_what_is_held():
    table = np.array([[1, 7, 7, 7]], np.int32)  # slots that do not exist are not touched
    x = torch.ones(2, 1, 8)
    pool, plain = used_pool(2, 1, 8, "float32")
    attend = PagedAttention(pool, [BatchSlice(table, 0, 0, 5, 2)], torch.float32)
    assert attend(0, plain, x, x, x).shape == (2, 8)
