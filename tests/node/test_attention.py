from __future__ import annotations

import pytest
import torch

from swarm_node.node.attention import BatchAttention, Piece
from swarm_node.node.kv_cache import SessionKv, kv_bytes_per_token
from swarm_node.swarm.errors import LocalProtocolError
from swarm_node.swarm.types import Span

CPU = torch.device("cpu")


def reference(q, k, v, start):
    """q (n, heads, hd) against k, v (start + n, kv_heads, hd), float64 softmax written out."""
    n, heads, head_dim = q.shape
    group = heads // k.shape[1]
    keys, values = k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * head_dim**-0.5
    seen = torch.arange(len(k))[None, :] <= torch.arange(start, start + n)[:, None]
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values).reshape(n, -1)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (4, 4, 20), (8, 1, 13)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_every_path_matches_plain_softmax(heads, kv_heads, head_dim, dtype, tolerance):
    """Decode alone and in a batch, prompts from the start, chunks after others, more than QUERY_ROWS rows."""
    torch.manual_seed(0)
    rounds = [[(0, 1)], [(0, 300), (1, 2), (2, 1)], [(0, 1), (1, 130), (2, 1)], [(2, 1)], [(1, 5), (0, 140)]]
    span = Span(3, 5)
    caches = {key: SessionKv(span, 500, kv_heads, head_dim, dtype, CPU) for key in range(3)}
    seen = {key: [(torch.empty(0, kv_heads, head_dim, dtype=dtype),) * 2] * 2 for key in range(3)}
    for chunks in rounds:
        pieces, row = [], 0
        for key, count in chunks:
            pieces.append(Piece(caches[key], row, caches[key].length, count))
            row += count
        attend = BatchAttention(pieces, dtype, CPU)
        for block in (3, 4):
            # Views of a fused product, as the blocks pass them.
            fused = torch.randn(row, heads + 2 * kv_heads, head_dim).to(dtype)
            q, k, v = fused.split([heads, kv_heads, kv_heads], 1)
            out = attend(block, q, k, v)
            assert out.shape == (row, heads * head_dim)
            for piece, (key, count) in zip(pieces, chunks, strict=True):
                rows = slice(piece.row, piece.row + count)
                old_k, old_v = seen[key][block - 3]
                now = torch.cat([old_k, k[rows]]), torch.cat([old_v, v[rows]])
                seen[key] = [now if block - 3 == i else old for i, old in enumerate(seen[key])]
                wanted = reference(q[rows], *now, piece.start)
                torch.testing.assert_close(out[rows].double(), wanted, atol=tolerance, rtol=tolerance)
        for piece in pieces:
            assert piece.kv.length == piece.start  # the engine's to move
            piece.kv.length = piece.start + piece.count


def test_a_rollback_overwrites_what_was_there():
    torch.manual_seed(1)
    kv = SessionKv(Span(0, 1), 16, 2, 8, torch.float32, CPU)
    q, k, v = torch.randn(8, 4, 8), torch.randn(8, 2, 8), torch.randn(8, 2, 8)
    BatchAttention([Piece(kv, 0, 0, 8)], torch.float32, CPU)(0, q, k, v)
    kv.length = 8
    kv.rollback(3)
    new_q, new_k, new_v = torch.randn(2, 4, 8), torch.randn(2, 2, 8), torch.randn(2, 2, 8)
    out = BatchAttention([Piece(kv, 0, 3, 2)], torch.float32, CPU)(0, new_q, new_k, new_v)
    wanted = reference(new_q, torch.cat([k[:3], new_k]), torch.cat([v[:3], new_v]), 3)
    torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(LocalProtocolError):
        kv.rollback(4)


def test_bytes_per_token_is_what_a_cache_takes():
    kv = SessionKv(Span(2, 7), 10, 3, 16, torch.bfloat16, CPU)
    assert sum(t.nbytes for t in kv.keys + kv.values) == 10 * kv_bytes_per_token(5, 3, 16, torch.bfloat16)
