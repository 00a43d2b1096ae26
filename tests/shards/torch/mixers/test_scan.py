"""Recurrences by products of matrices and row by row: against their definition in float64, and against what
transformers computes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.kimi_linear import modeling_kimi_linear as kimi
from transformers.models.nemotron_h import modeling_nemotron_h as nemotron
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

from swarm_node.shards.torch.mixers.scan import Rows, scan

SIZES = (1, 2, 7, 8, 9, 16, 31, 32)


def made(
    *,
    delta: bool = True,
    channels: bool = False,
    sessions: int = 2,
    count: int = 40,
    heads: tuple[int, int] = (4, 2),
    dims: tuple[int, int] = (12, 8),
    decays: tuple[float, float] = (1e-3, 1.0),
    beta: float = 1.0,
    tiled: bool = False,
    seed: int = 0,
) -> Rows:
    """Random rows. ``decays``: minus the logarithms of most of them lie between."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(sessions, count, *shape, generator=generator)

    qk = normal(2, heads[1], dims[0])
    if delta:
        qk = qk / qk.norm(dim=-1, keepdim=True)
    share = torch.rand(sessions, count, heads[0], dims[0] if channels else 1, generator=generator)
    low, high = map(math.log, decays)
    log = -(low + share * (high - low)).exp()
    added = torch.rand(sessions, count, heads[0], 1, generator=generator) * beta
    return Rows(qk, normal(heads[0], dims[1]), log, added, delta, tiled)


def before(rows: Rows, seed: int = 9) -> Tensor:
    sessions, _, heads, value_dim = rows.v.shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sessions * heads, rows.qk.shape[-1], value_dim, generator=generator)


def scanned(rows: Rows, size: int, together: int = 16) -> tuple[Tensor, Tensor]:
    """Outputs (sessions, rows, heads, value_dim), and the matrices after all rows."""
    matrices, out, first = before(rows), [], 0
    count = rows.v.shape[1]
    for many, each in ((count // size, size), (1, count % size)):
        part = slice(first, first + many * each)
        taken = (x[:, part] for x in (rows.qk, rows.v, rows.log, rows.added))
        out += list(scan(Rows(*taken, rows.delta, rows.tiled), matrices, each, together)) if each else []
        first = part.stop
    return torch.cat(out, 1), matrices


def defined(rows: Rows) -> tuple[Tensor, Tensor]:
    """The same, one row and one head after the other, in float64."""
    sessions, count, heads, _ = rows.v.shape
    key_heads = rows.qk.shape[3]
    matrices = before(rows).double().unflatten(0, (sessions, heads))
    out = torch.empty(rows.v.shape, dtype=torch.float64)
    qk, v, log, added = (x.double() for x in (rows.qk, rows.v, rows.log, rows.added))
    for session in range(sessions):
        for head in range(heads):
            of_key = head % key_heads if rows.tiled else head // (heads // key_heads)
            matrix = matrices[session, head]
            for row in range(count):
                q, k = qk[session, row, :, of_key]
                matrix *= log[session, row, head].exp()[:, None]
                held = k @ matrix if rows.delta else 0
                matrix += torch.outer(k, added[session, row, head] * (v[session, row, head] - held))
                out[session, row, head] = q @ matrix
    return out, matrices.flatten(0, 1)


def check(rows: Rows, size: int, together: int = 16, most: float = 1e-5) -> None:
    for got, want in zip(scanned(rows, size, together), defined(rows), strict=True):
        assert torch.isfinite(got).all()
        assert (got - want).abs().max() <= most * want.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [False, True], ids=["a decay a head", "a decay a channel"])
@pytest.mark.parametrize("tiled", [False, True], ids=["", "tiled"])
def test_the_delta_rule(size: int, channels: bool, tiled: bool) -> None:
    check(made(channels=channels, tiled=tiled, beta=2.0), size)


@pytest.mark.parametrize("size", SIZES)
def test_the_plain_rule(size: int) -> None:
    check(made(delta=False, heads=(6, 2)), size)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_decays(data: st.DataObject) -> None:
    """From none to such as leave nothing, one beside the other, and none of the matrix at all."""
    draw = data.draw
    delta = draw(st.booleans())
    rows = made(
        delta=delta,
        channels=delta and draw(st.booleans()),
        sessions=draw(st.integers(1, 2)),
        count=draw(st.integers(1, 70)),
        heads=draw(st.sampled_from([(1, 1), (2, 1), (6, 3)])),
        dims=draw(st.sampled_from([(1, 1), (4, 20), (16, 4)])),
        decays=draw(st.sampled_from([(1e-6, 1e-3), (1e-3, 300.0), (50.0, 1e5)])),
        beta=draw(st.sampled_from([0.1, 1.0, 2.0])),
        tiled=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )
    rows.log[torch.rand(rows.log.shape) < draw(st.sampled_from([0.0, 0.1]))] = -math.inf
    rows.log[torch.rand(rows.log.shape) < draw(st.sampled_from([0.0, 0.5]))] = 0.0
    check(rows, draw(st.sampled_from(SIZES)), draw(st.integers(1, 3)))


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize(("beta", "most"), [(1.0, 1e-6), (2.0, 2e-4)])
def test_keys_that_are_all_the_same(beta: float, most: float, channels: bool) -> None:
    """Sums of powers of what couples the rows would be large and cancel. With beta 2 each row mirrors what
    the one before left, which 32 at once have less exact by two digits than one by one."""
    rows = made(channels=channels, decays=(1e-9, 1e-6), count=64)
    same = replace(rows, qk=rows.qk[:, :1].expand(rows.qk.shape), added=torch.full_like(rows.added, beta))
    check(same, 32, most=most)
    check(same, 1, most=3e-6)


@pytest.mark.parametrize("channels", [False, True])
def test_what_comes_after_a_strong_decay_is_exact(channels: bool) -> None:
    """Decays are no differences of sums, which would have lost what is small beside -1e6."""
    rows = made(channels=channels, count=32, decays=(1e-3, 0.1))
    rows.log[:, 9] = -1e6
    (got, _), (want, _) = scanned(rows, 32), defined(rows)
    assert (got - want)[:, 9:].abs().max() <= 1e-6 * want[:, 9:].abs().max().clamp(min=1.0)


def of_transformers(rows: Rows) -> dict[str, Any]:
    """Its names of what a delta rule reads."""
    sessions, _, heads, _ = rows.v.shape
    q, k = rows.qk.unbind(2)
    return {
        "value": rows.v,
        "query": q * q.shape[-1] ** 0.5,  # which it divides by that
        "key": k,
        "g": rows.log if rows.log.shape[-1] > 1 else rows.log[..., 0],
        "beta": rows.added[..., 0],
        "initial_state": before(rows).unflatten(0, (sessions, heads)),
        "output_final_state": True,
    }


@pytest.mark.parametrize("size", [1, 32])
@pytest.mark.parametrize("function", ["torch_recurrent_gated_delta_rule", "torch_chunk_gated_delta_rule"])
def test_against_gated_deltanet_of_transformers(function: str, size: int) -> None:
    rows = made(count=70)
    want, after = getattr(qwen, function)(**of_transformers(rows))
    got, matrices = scanned(rows, size)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)
    torch.testing.assert_close(matrices, after.flatten(0, 1), rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [1, 32])
@pytest.mark.parametrize("function", ["recurrent_kimi_delta_attention", "chunk_kimi_delta_attention"])
def test_against_kda_of_transformers(function: str, size: int) -> None:
    rows = made(count=70, channels=True, heads=(4, 4))
    want, after = getattr(kimi, function)(**of_transformers(rows))
    got, matrices = scanned(rows, size)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)
    torch.testing.assert_close(matrices, after.flatten(0, 1), rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [1, 32])
def test_against_mamba_of_transformers(size: int) -> None:
    rows = made(delta=False, count=70, heads=(6, 2))
    rate = torch.linspace(0.5, 4.0, 6)
    rows = replace(rows, log=-rate[:, None] * rows.added)
    q, k = rows.qk.unbind(2)
    want, after = nemotron.mamba2_chunk_scan(
        rows.v,
        rows.added[..., 0],
        -rate,
        k,
        q,
        chunk_size=16,
        initial_states=before(rows).unflatten(0, (2, 6)).transpose(2, 3),
        return_final_states=True,
    )
    got, matrices = scanned(rows, size)
    torch.testing.assert_close(got, want.view(got.shape), rtol=0, atol=2e-5)
    torch.testing.assert_close(matrices, after.transpose(2, 3).flatten(0, 1), rtol=0, atol=2e-5)
