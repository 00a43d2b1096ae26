"""The plain torch path over pages, against softmax written out over what the pool holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.shards.formats.blocks.attention import KvShape
from swarm_node.shards.layers.kv_pool import KV_DTYPES, BatchSlice
from swarm_node.shards.torch.mixers.attention import PagedAttention, Scores, best
from swarm_node.shards.torch.tensors.kv_pool import TorchKvPool
from swarm_node.swarm.errors import LocalProtocolError
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from tests.shards.torch.kv_cases import (
    CPU,
    PagedSession,
    shuffled_sessions,
    softmax_attention,
    soil,
    stored,
    used_pool,
)


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


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([0.0, -0.5, 1.0, 2.0]), min_size=9, max_size=9), min_size=1), st.data()
)
def test_of_equal_scores_the_earlier_tokens_are_seen(rows: list[list[float]], data: st.DataObject) -> None:
    scores, top = torch.tensor(rows), data.draw(st.integers(1, 9))
    for scored, chosen in zip(rows, best(scores, top).tolist(), strict=True):
        ranked = sorted(range(9), key=lambda token: (-scored[token], token))
        assert [token for token in range(9) if chosen[token]] == sorted(ranked[:top])


@pytest.mark.parametrize("rowwise", [False, True])
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_a_row_sees_the_tokens_that_were_chosen(kv_dtype: str, rowwise: bool) -> None:
    """Rows that see all and rows that do not, of two sessions; what lies behind them is NaN."""
    torch.manual_seed(3)
    shape, top = KvShape(1, 12, 8, shared=True, index_dim=6), 35
    sessions, n_slots = shuffled_sessions([(0, 1, 70), (0, 1, 60)])
    pool, plain = TorchKvPool(n_slots, (shape,), kv_dtype, CPU), Scores(shape, 0.3)
    for part in (pool.part(shape), pool.index(shape)):
        soil(part.held)
    for counts in ((50, 20), (1, 1), (9, 30)):
        rows = sum(counts)
        slices = [sessions[0].part(0, counts[0]), sessions[1].part(counts[0], counts[1])]
        attend = PagedAttention(pool, slices, torch.float32, rowwise=rowwise)
        q, k, weights = torch.randn(rows, 3, 6), torch.randn(rows, 1, 6), torch.randn(rows, 3)
        attend.choose(0, shape, top, q, k, weights)
        queries, keys = torch.randn(rows, 4, 12), torch.randn(rows, 1, 12)
        out = attend(0, plain, queries, keys, keys[..., :8], indexed=True).double()
        for part, session in zip(slices, sessions, strict=True):
            index, _ = stored(pool.index(shape), session, 0, part.start + part.count)
            held, values = stored(pool.part(shape), session, 0, part.start + part.count)
            for row, end in enumerate(range(part.start + 1, part.start + part.count + 1), part.row):
                found = (q[row].double() @ index[:end, 0].T).relu()
                tokens = (weights[row].double() @ found).argsort(descending=True, stable=True)[:top]
                shares = (queries[row].double() @ held[tokens, 0].T * 0.3).softmax(-1)
                wanted = (shares @ values[tokens, 0]).flatten()
                torch.testing.assert_close(out[row], wanted, atol=1e-5, rtol=1e-5)
            session.length += part.count
