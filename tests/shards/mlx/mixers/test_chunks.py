"""A recurrence by chunks against one step a row in float64."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.shards.mlx.mixers.chunks import ChunkRows, advance
from tests.shards.models.state_cases import channels, delta, mamba

KEY, VALUE = 8, 12
RULES = {"delta": delta, "channel": channels, "plain": mamba}


def stepped(rule: str, rows: dict[str, np.ndarray], state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One row after the other, (heads, key_dim, value_dim) each."""
    out = []
    for at in range(rows["v"].shape[2]):
        q, k, v, log, added = (rows[name][0, :, at].astype(np.float64) for name in ChunkRows._fields)
        state = state * np.exp(log)[..., None]
        u = added * (v if rule == "plain" else v - np.einsum("hk,hkv->hv", k, state))
        state = state + k[..., None] * u[:, None]
        out.append(np.einsum("hk,hkv->hv", q, state))
    return np.stack(out, 1), state


def made_up(rule: str, size: int, decay: float, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """``decay``: the largest size of a logarithm, whose others are between 0 and it, most of them small."""
    order = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return order.standard_normal(shape, np.float32)

    q, k, v = normal(1, 2, size, KEY), normal(1, 2, size, KEY), normal(1, 2, size, VALUE)
    log = -decay * order.random((1, 2, size, KEY if rule == "channel" else 1), np.float32) ** 8
    added = order.random((1, 2, size, 1), np.float32) * (1 if rule == "plain" else 2)
    k = k if rule == "plain" else k / np.linalg.norm(k, axis=-1, keepdims=True)
    return {"q": q, "k": k, "v": v, "log": log, "added": added}, normal(2, KEY, VALUE)


def check(rule: str, rows: dict[str, np.ndarray], state: np.ndarray) -> None:
    # (C, heads, 1 value head of each key, L, ...)
    wide = ChunkRows(*(mx.array(rows[name])[:, :, None] for name in ChunkRows._fields))
    out, [after] = advance(RULES[rule](), (1,), wide, [mx.array(state)[None, :, None]])
    for got, want in zip((out, after), stepped(rule, rows, state), strict=True):
        wide_got = np.array(got).reshape(want.shape)
        np.testing.assert_allclose(wide_got, want, atol=1e-5 * np.abs(want).max(), rtol=0)


@settings(deadline=None, max_examples=40)
@given(
    rule=st.sampled_from(list(RULES)),
    size=st.sampled_from([1, 2, 8, 32]),
    decay=st.sampled_from([0.0, 0.1, 5.0, 300.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_chunks_are_steps(rule: str, size: int, decay: float, seed: int) -> None:
    check(rule, *made_up(rule, size, decay, seed))


@pytest.mark.parametrize("rule", RULES)
def test_a_row_may_forget_all_that_was_before(rule: str) -> None:
    rows, state = made_up(rule, 32, 1.0, 0)
    rows["log"][:, :, [0, 7, 8]] = -np.inf
    check(rule, rows, state)


@pytest.mark.parametrize("rule", ["delta", "channel"])
def test_keys_that_are_all_the_same(rule: str) -> None:
    """The powers of what is solved for grow to 1e8, the inverse does not."""
    rows, state = made_up(rule, 32, 0.01, 0)
    rows["k"][:] = rows["k"][:, :, :1]
    rows["added"][:] = 1.9
    check(rule, rows, state)


def test_slices_have_chunks_of_their_own() -> None:
    """Three of one session, one of another."""
    parts = [made_up("delta", 8, 2.0, seed) for seed in range(4)]
    wide: Any = [
        mx.array(np.concatenate([rows[name] for rows, _ in parts])[:, :, None]) for name in ChunkRows._fields
    ]
    begun = [mx.array(parts[at][1])[None, :, None] for at in (0, 3)]
    out, after = advance(delta(), (3, 1), ChunkRows(*wide), begun)
    state = parts[0][1]
    for at, (rows, own) in enumerate(parts):
        want, state = stepped("delta", rows, own if at == 3 else state)
        np.testing.assert_allclose(np.array(out[at]).reshape(want.shape), want, atol=1e-5)
        np.testing.assert_allclose(np.array(after[at]).reshape(state.shape), state, atol=1e-5)
