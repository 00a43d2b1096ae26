"""Blocks of every kind on torch against what their settings say, computed plainly in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swarm_node.shards.formats.blocks.block import BlockConfig
from swarm_node.shards.formats.raw_tensor import RawTensor
from swarm_node.shards.layers.kv_pool import KV_DTYPES, BatchSlice
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.errors import LocalProtocolError
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.types import Span
from tests.shards.models.block_cases import (
    CASES,
    HIDDEN,
    INDEXED,
    OF_TORCH,
    block,
    block_configs,
    checkpoint_of,
    indexed,
    width_of,
)
from tests.shards.models.block_reference import reference
from tests.shards.models.state_cases import STATES, blocks_with_states

Sessions = Callable[..., Any]
CHUNKS = (33, 1, 1, 30, 1, 9)
TOKENS = sum(CHUNKS)
OTHERS = (5, 1, 40, 2, 1, 26)
"""The session beside it gets so many tokens each time."""
HELD = ({"dtype": "bfloat16"}, {"quantize": "int8"}, {"quantize": "int4"})
TOLERANCE = 4e-6
"""Of the largest output: float32's rounding over three blocks."""


def inputs(tokens: int = TOKENS, seed: int = 0, width: int = HIDDEN) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((tokens, width), np.float32))


def load(blocks: Sequence[BlockConfig], *, qtype: str = "F32", **options: Any) -> SpanBackend[Any]:
    wanted = LoadOptions(**{"dtype": "float32", "quantize": "none", "kernels": "torch", **options})
    return load_backend(checkpoint_of(tuple(blocks), qtype), Span(0, len(blocks)), wanted)


def fed_in_chunks(sessions: Sessions, model: SpanBackend[Any], kv_dtype: str = "float32") -> Tensor:
    """The outputs of ``inputs()``, cut into CHUNKS, beside another session's rows, which come first."""
    both = sessions(model, count=2, tokens=96, kv_dtype=kv_dtype)
    width = model.config.row_width(0)
    other, made = inputs(seed=1, width=width).split(OTHERS), []
    for rows, beside in zip(inputs(width=width).split(CHUNKS), other, strict=True):
        batch = torch.cat((beside, rows))
        made.append(both.forward(batch, [(1, len(beside)), (0, len(rows))])[len(beside) :])
    return torch.cat(made)


def close(got: Tensor, want: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert np.abs(got.numpy() - want).max() <= tolerance * np.abs(want).max()


ALL = CASES | STATES | OF_TORCH


@cache
def wanted(case: str) -> np.ndarray:
    return reference(checkpoint_of(ALL[case]), inputs(width=width_of(ALL[case])).numpy())


@pytest.mark.parametrize("case", ALL)
def test_every_kind_of_block_in_ragged_chunks(sessions: Sessions, case: str) -> None:
    close(fed_in_chunks(sessions, load(ALL[case])), wanted(case))


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL)
def test_rowwise_a_row_has_the_same_bits_in_any_batch(sessions: Sessions, case: str) -> None:
    model = load(ALL[case], deterministic=True)
    alone = sessions(model, tokens=96, seed=3)
    x = inputs(width=width_of(ALL[case]))
    one_by_one = torch.cat([alone.forward(row) for row in x.split(1)])
    close(one_by_one, wanted(case))
    assert torch.equal(fed_in_chunks(sessions, model), one_by_one)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(st.lists(block_configs() | blocks_with_states(), min_size=1, max_size=2), st.booleans())
def test_any_block(sessions: Sessions, blocks: list[BlockConfig], deterministic: bool) -> None:
    """Also such as no model has."""
    want = reference(checkpoint_of(tuple(blocks)), inputs().numpy())
    got = fed_in_chunks(sessions, load(blocks, deterministic=deterministic))
    # Where two experts are all but equal, rounding may choose the other one: that shows in single rows.
    wrong = np.abs(got.numpy() - want).max(1) > 1e-4 * np.abs(want).max(1)
    assert wrong.mean() <= 0.05


@pytest.mark.parametrize(
    "options", [{"dtype": "bfloat16"}, {"quantize": "int8"}, {"quantize": "int4"}], ids=str
)
@pytest.mark.parametrize(
    "case", ["deepseek", "gpt-oss", "keys as values", "parallel", "delta", "channels", "nemotron"]
)
def test_weights_are_held_as_the_plan_says(sessions: Sessions, case: str, options: dict[str, str]) -> None:
    """What is left is rounding: some rows may go to other experts."""
    model = load(ALL[case], qtype="BF16", **options)
    exact = load(ALL[case], qtype="BF16")
    if "quantize" in options:
        assert model.weights.startswith(options["quantize"])
        assert model.weight_bytes < exact.weight_bytes / 2
    got, want = (fed_in_chunks(sessions, each, "float16") for each in (model, exact))
    errors = (got - want).norm(dim=1) / want.norm(dim=1)
    assert errors.median().item() < (0.2 if options.get("quantize") == "int4" else 0.03)


EXACT = ({"kernels": "native"}, {"kernels": "torch", "deterministic": True}, {"kernels": "torch"})
"""Of the last a row's bits depend on how its chunk was cut, and on nothing else."""


@pytest.mark.parametrize("how", EXACT, ids=str)
def test_an_indexer_that_chooses_all_tokens_changes_no_bit(sessions: Sessions, how: dict[str, Any]) -> None:
    """Until a session has more tokens than it chooses."""
    every, just, fewer = (load((block(indexed(top)),), **how) for top in (500, TOKENS, TOKENS - 1))
    want, same, other = (fed_in_chunks(sessions, each) for each in (every, just, fewer))
    assert torch.equal(want, same)
    assert torch.equal(want[:-1], other[:-1])
    assert not torch.equal(want[-1], other[-1])


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("how", EXACT[:2], ids=str)
def test_going_back_forgets_index_keys(sessions: Sessions, kv_dtype: str, how: dict[str, Any]) -> None:
    """What is fed again overwrites them, in every type that they are kept in."""
    model = load(INDEXED["another's indexer"], **how)
    session, fresh = (sessions(model, tokens=96, kv_dtype=kv_dtype) for _ in range(2))
    x = inputs()
    want = fresh.forward(x)
    session.forward(torch.cat((x[:40], inputs(seed=5)[40:])))
    session.lengths[0] = 40
    assert torch.equal(session.forward(x[40:]), want[40:])


def test_of_equal_scores_the_earlier_tokens_are_seen(sessions: Sessions) -> None:
    """Where no head scores anything, all tokens are equal: the first ones are seen, by every executor."""
    made = checkpoint_of((block(indexed(7)),))
    zero = "model.layers.0.self_attn.indexer.weights_proj.weight"
    plain = made.tensor

    def without(name: str) -> Any:
        raw = plain(name)
        return RawTensor(name, raw.shape, raw.qtype, np.zeros_like(raw.stored)) if name == zero else raw

    made.tensor = without  # type: ignore[method-assign]
    want = reference(made, inputs().numpy())
    for kernels in ("native", "torch"):
        for deterministic in (False, True):
            options = LoadOptions(
                dtype="float32", quantize="none", kernels=kernels, deterministic=deterministic
            )
            model = load_backend(made, Span(0, 1), options)
            close(fed_in_chunks(sessions, model), want)


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_a_block_whose_indexer_was_not_computed_is_an_error(sessions: Sessions, kernels: str) -> None:
    session = sessions(load(INDEXED["another's indexer"], kernels=kernels), tokens=96)
    with pytest.raises(LocalProtocolError, match="no indexer before block 1"):
        session.forward(inputs(4), span=Span(1, 3))


def test_a_long_session_is_turned_by_the_long_factors() -> None:
    """Beside a short one, in the same batch."""
    blocks, x, pages = CASES["longrope"], inputs(), -(-TOKENS // PAGE_TOKENS)
    model = load(blocks)
    tables = np.arange(2 * pages, dtype=np.int32).reshape(2, 1, pages)
    slices = [
        BatchSlice(tables[0], 0, 0, 0, TOKENS, long_context=True),
        BatchSlice(tables[1], 0, TOKENS, 0, TOKENS),
    ]
    both = torch.from_numpy(
        model.forward(torch.cat((x, x)).numpy(), slices, model.new_pool(2 * pages, "float32"))
    )
    for got, long in zip(both.split(TOKENS), (True, False), strict=True):
        close(got, reference(checkpoint_of(blocks), x.numpy(), long=long))
    assert (both[:TOKENS] - both[TOKENS:]).abs().max() > 0.01


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("case", ["window", "chunk", "gemma", "mixed"])
def test_pages_that_no_row_sees_may_be_gone(sessions: Sessions, case: str, deterministic: bool) -> None:
    """Their slots are -1, in those blocks that see no further."""
    blocks = CASES[case]
    model = load(blocks, deterministic=deterministic)
    want = fed_in_chunks(sessions, model)
    fed, made = sessions(model, count=2, tokens=96), []
    for first, last in pairwise(np.cumsum((0, *CHUNKS))):
        for number, settings_ in enumerate(blocks):
            window, chunk = settings_.attention.window, settings_.attention.chunk
            seen = first // chunk * chunk if chunk else first - window + 1 if window else 0
            fed.tables[0][number, : max(0, seen) // PAGE_TOKENS] = -1
        made.append(fed.forward(inputs()[first:last]))
    close(torch.cat(made), want.numpy())
    assert (fed.tables[0] == -1).any()


@pytest.mark.parametrize("case", OF_TORCH)
def test_what_the_c_kernels_leave_to_torch(case: str) -> None:
    assert load(OF_TORCH[case], kernels="auto").kernels == "torch (blocks that only torch computes)"
