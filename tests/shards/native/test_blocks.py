"""Blocks of every kind in C: against float64, and row by row the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.shards.formats.blocks.attention import HeadNorm, LatentConfig
from swarm_node.shards.formats.blocks.block import BlockConfig
from swarm_node.shards.formats.blocks.mlp import MlpConfig
from swarm_node.shards.formats.raw_tensor import RawTensor
from swarm_node.shards.layers.kv_pool import KV_DTYPES
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.determinism_check import MOST_BEFORE, check_determinism
from swarm_node.shards.models.load_plan import LoadOptions, resolve
from swarm_node.shards.native.span import NativeSpan, load_native_span
from swarm_node.swarm.errors import CheckpointError
from swarm_node.swarm.types import Span
from tests.shards.models.block_cases import (
    CASES,
    HIDDEN,
    INDEXED,
    LAYER,
    attention,
    block,
    block_configs,
    checkpoint_of,
    indexed,
    latent,
    rope,
    width_of,
)
from tests.shards.models.block_reference import reference
from tests.shards.models.state_cases import STATES, blocks_with_states

MakeSessions = Callable[..., Any]
Blocks = tuple[BlockConfig, ...]

ALL = CASES | STATES
LENGTHS = (70, 41, 9)
FEEDS = [[(0, 33), (1, 1)], [(1, 1), (0, 1), (2, 3)], [(0, 36), (1, 39), (2, 6)]]
"""(session, tokens) of each batch; rows go past a page and a tile."""


def load(
    blocks: Blocks, qtype: str = "F32", *, threads: int = 1, kernels: str = "native", **options: Any
) -> NativeSpan:
    checkpoint = checkpoint_of(blocks, qtype)
    plan = resolve(LoadOptions(quantize=options.pop("quantize", "none"), kernels=kernels, **options), qtype)
    return load_native_span(checkpoint, Span(0, len(blocks)), plan, threads=threads)


def rows(session: int, width: int = HIDDEN) -> torch.Tensor:
    return torch.randn(LENGTHS[session], width, generator=torch.Generator().manual_seed(session))


def fed(sessions: MakeSessions, model: NativeSpan, **options: Any) -> list[torch.Tensor]:
    """What comes out for each session, in batches."""
    memory = sessions(model, count=len(LENGTHS), tokens=max(LENGTHS), **options)
    at, out, width = [0] * len(LENGTHS), [[] for _ in LENGTHS], model.config.row_width(0)
    for feed in FEEDS:
        x = torch.cat([rows(session, width)[at[session] : at[session] + count] for session, count in feed])
        parts = memory.forward(x, feed).split([count for _, count in feed])
        for (session, count), part in zip(feed, parts, strict=True):
            at[session] += count
            out[session].append(part)
    return [torch.cat(parts) for parts in out]


@lru_cache(maxsize=len(ALL))
def in_float64(blocks: Blocks, long: bool) -> list[np.ndarray]:
    """What ``fed`` should give."""
    checkpoint, width = checkpoint_of(blocks), width_of(blocks)
    return [reference(checkpoint, rows(session, width).numpy(), long=long) for session in range(len(LENGTHS))]


def check_against_float64(
    sessions: MakeSessions, blocks: Blocks, *, threads: int, long: bool = False, most: float = 1e-5
) -> None:
    model = load(blocks, threads=threads)
    for got, want in zip(fed(sessions, model, long=long), in_float64(blocks, long), strict=True):
        error = np.linalg.norm(got.numpy() - want, axis=1) / np.linalg.norm(want, axis=1)
        assert error.max() < most


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", ALL)
def test_against_float64(sessions: MakeSessions, case: str, threads: int) -> None:
    check_against_float64(sessions, ALL[case], threads=threads)


def test_a_long_session(sessions: MakeSessions) -> None:
    check_against_float64(sessions, CASES["longrope"], threads=1, long=True)


@settings(max_examples=40)
@given(
    blocks=st.lists(block_configs() | blocks_with_states(), min_size=1, max_size=3), threads=st.integers(1, 2)
)
def test_any_blocks_against_float64(sessions: MakeSessions, blocks: list[BlockConfig], threads: int) -> None:
    """Without norms numbers grow, and roundings with them."""
    check_against_float64(sessions, tuple(blocks), threads=threads, most=1e-4)


ODD: dict[str, Blocks] = {
    "71 heads of one key": (block(attention(heads=71, kv_heads=1, head_dim=8, rope=rope(4))),),
    "no width is a multiple of 8": (
        block(
            attention(
                heads=6, kv_heads=3, head_dim=10, rope=rope(6), gate="channel", qk_norm=HeadNorm(LAYER)
            ),
            mlp=MlpConfig(33, "gelu", bias=True),
        ),
    ),
    "50 heads of an odd latent": (
        block(
            latent(heads=50, head_dim=15, rope=rope(4), latent=LatentConfig(37, 9, 6, 11, LAYER, q_rank=13))
        ),
    ),
}


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("case", ODD)
def test_odd_sizes(sessions: MakeSessions, case: str, weights: str) -> None:
    check_against_float64(sessions, ODD[case], threads=3)
    check_rows(sessions, ODD[case], weights, "float16")


@pytest.mark.parametrize(
    "case",
    ["experts beside a dense MLP", "parallel experts", "deepseek", "parallel, two norms"]
    + ["values beside", "values beside experts", "gemma 4 E"]
    + ["another's indexer", "attention beside mamba", "scaled", "nemotron", "different states"],
)
def test_more_rows_than_go_together(sessions: MakeSessions, case: str) -> None:
    """Experts take 256 at a time, all else 64."""
    x = torch.randn(330, width_of(ALL[case]), generator=torch.Generator().manual_seed(1))
    want = sessions(load(ALL[case]), tokens=330).forward(x)
    for threads, chunk in ((1, 50), (2, 257), (3, 330)):
        memory = sessions(load(ALL[case], threads=threads), tokens=330)
        assert torch.equal(torch.cat([memory.forward(rows) for rows in x.split(chunk)]), want)
    exact = reference(checkpoint_of(ALL[case]), x.numpy())
    assert np.linalg.norm(want.numpy() - exact) / np.linalg.norm(exact) < 1e-5


WEIGHTS: dict[str, dict[str, str]] = {
    "float32": {"qtype": "F32"},
    "float16": {"qtype": "F16"},
    "bfloat16": {"qtype": "BF16"},
    "int8": {"qtype": "F32", "quantize": "int8"},
    "int4": {"qtype": "Q4_0", "quantize": "auto"},
    "int4, one digit": {"qtype": "Q4_1", "quantize": "auto", "kernels": "fast"},
}


def check_rows(sessions: MakeSessions, blocks: Blocks, weights: str, kv_dtype: str) -> None:
    """In batches, in chunks and alone, on one thread to three: the same bits."""
    want = None
    for threads in (1, 2, 3):
        model = load(blocks, threads=threads, **WEIGHTS[weights])
        if want is None:
            check_determinism(model, kv_dtype)
            want = fed(sessions, model, kv_dtype=kv_dtype)
        for got, expected in zip(fed(sessions, model, kv_dtype=kv_dtype, seed=threads), want, strict=True):
            assert torch.equal(got, expected)


class Watched(NativeSpan):
    """``last``: the last position that was computed; ``gone``: most pages that a slice lacked."""

    last = 0
    gone = 0

    @classmethod
    def loaded(cls, blocks: Blocks) -> Watched:
        model = cls.__new__(cls)
        vars(model).update(vars(load(blocks)))
        return model

    def forward(self, x: np.ndarray, slices: Any, pool: Any, span: Span | None = None) -> np.ndarray:
        self.last = max(self.last, *(part.start + part.count - 1 for part in slices))
        self.gone = max(self.gone, *((part.table == -1).sum() for part in slices))
        return super().forward(x, slices, pool, span)


@pytest.mark.parametrize("windows", [(20,), (0, 100, 20), (100, 5000)], ids=str)
def test_the_check_of_a_span_goes_past_its_windows(windows: tuple[int, ...]) -> None:
    model = Watched.loaded(tuple(block(attention(window=window)) for window in windows))
    check_determinism(model, "float32")
    assert model.last > max(window for window in windows if window < MOST_BEFORE)
    assert bool(model.gone) is (20 in windows and 100 in windows)


def test_the_check_of_a_span_goes_past_what_an_indexer_chooses() -> None:
    model = Watched.loaded((block(indexed(200)), block(indexed(1, own=False), index_of=0)))
    check_determinism(model, "float32")
    assert model.last > 200
    assert not model.gone


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL)
def test_a_rows_bits_depend_on_its_own_past_alone(sessions: MakeSessions, case: str) -> None:
    number = list(ALL).index(case)
    weights = list(WEIGHTS)[number % len(WEIGHTS)]
    check_rows(sessions, ALL[case], weights, KV_DTYPES[number % len(KV_DTYPES)])


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_a_row_sees_what_an_indexer_chose_in_any_batch(sessions: MakeSessions, kv_dtype: str) -> None:
    check_rows(sessions, INDEXED["another's indexer"], "float32", kv_dtype)


@pytest.mark.slow
@settings(max_examples=40)
@given(
    blocks=st.lists(block_configs() | blocks_with_states(), min_size=1, max_size=2),
    weights=st.sampled_from(list(WEIGHTS)),
    kv_dtype=st.sampled_from(KV_DTYPES),
)
def test_rows_of_any_blocks(
    sessions: MakeSessions, blocks: list[BlockConfig], weights: str, kv_dtype: str
) -> None:
    check_rows(sessions, tuple(blocks), weights, kv_dtype)


@pytest.mark.parametrize("qtype", ["F16", "BF16", "Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("case", ["latent of q", "parallel", "output gate", "experts", "relu2 without gate"])
def test_the_files_own_weights(sessions: MakeSessions, case: str, qtype: str) -> None:
    """Made-up integers are large weights: a rounding may choose another expert for a row."""
    check_median(sessions, load(CASES[case], qtype, quantize="auto"), CASES[case], qtype)


@pytest.mark.parametrize("qtype", ["F16", "BF16", "Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("case", ["delta, biases", "channels", "mamba, gate after", "short convolution"])
def test_the_files_own_weights_of_states(sessions: MakeSessions, case: str, qtype: str) -> None:
    """Where such weights are, exponentials make much of a rounding: so activations are exact here."""
    model = load(STATES[case], qtype, quantize="auto", dtype="float32")
    check_median(sessions, model, STATES[case], qtype)


def check_median(sessions: MakeSessions, model: NativeSpan, blocks: Blocks, qtype: str) -> None:
    for session, got in enumerate(fed(sessions, model)):
        want = reference(checkpoint_of(blocks, qtype), rows(session).numpy())
        error = np.linalg.norm(got.numpy() - want, axis=1) / np.linalg.norm(want, axis=1)
        assert np.median(error) < 1e-4


def test_weights_that_are_rounded_to_int8(sessions: MakeSessions) -> None:
    for case in ("latent of q", "parallel", "output gate", "experts, all used", "gelu without gate"):
        wants = fed(sessions, load(CASES[case]))
        for got, want in zip(fed(sessions, load(CASES[case], **WEIGHTS["int8"])), wants, strict=True):
            assert 0 < ((got - want).norm() / want.norm()).item() < 0.02


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_experts_are_not_chosen_by_numbers_that_are_not_finite(
    kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One executor would always take such an expert, another never."""
    checkpoint = checkpoint_of(CASES["sigmoid router in groups"])
    whole = checkpoint.tensor

    def spoilt(name: str) -> RawTensor:
        raw = whole(name)
        if not name.endswith("router.correction"):
            return raw
        values = raw.dequantize()
        values[1] = np.nan
        return replace(raw, stored=values.view(np.uint8).reshape(1, -1))

    monkeypatch.setattr(checkpoint, "tensor", spoilt)
    with pytest.raises(CheckpointError, match=r"router\.correction has weights that are not finite"):
        load_backend(checkpoint, Span(0, 1), LoadOptions(kernels=kernels))
