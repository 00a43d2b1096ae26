"""Blocks of every kind on MLX's CPU build, against what they compute in float64: prompts in ragged pieces and
decode steps of several sessions, whose blocks give up the pages that they no longer see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.formats.blocks.block import BlockConfig
from swarm_node.shards.formats.qtypes import row_bytes
from swarm_node.shards.layers.kv_pool import KV_DTYPES
from swarm_node.shards.loading import load_backend
from swarm_node.shards.mlx.block import MlxBlock
from swarm_node.shards.mlx.mixers import attention, scores
from swarm_node.shards.mlx.mixers.attention import PagedAttention
from swarm_node.shards.mlx.mixers.scores import Scores
from swarm_node.shards.mlx.tensors import device
from swarm_node.shards.mlx.tensors.linear import GroupedLinear
from swarm_node.shards.mlx.weights import MlxLoader, MlxPlan
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.shards.models.block_loading import load_block
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.random_blocks import random_checkpoint
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.types import Span
from tests.shards.conftest import Sessions
from tests.shards.mlx.mlx_cases import FEEDS, loaded
from tests.shards.models.block_cases import CASES, HIDDEN, block_configs, checkpoint_of, width_of
from tests.shards.models.block_reference import reference
from tests.shards.models.state_cases import STATES, blocks_with_states

LENGTH = 128
ALL = CASES | STATES


def outputs(
    model: SpanBackend[Any],
    inputs: np.ndarray,
    feeds: list[list[tuple[int, int]]] = FEEDS,
    *,
    kv_dtype: str = "float32",
    long: bool = False,
) -> list[np.ndarray]:
    """``inputs`` (sessions, LENGTH, hidden) → of each session the rows that were fed."""
    held = Sessions(model, len(inputs), LENGTH, kv_dtype)
    lengths, rows = held.lengths, [[np.empty((0, HIDDEN), np.float32)] for _ in inputs]
    for feed in feeds:
        parts, x = [], []
        for session, count in feed:
            start = lengths[session]
            for block, config in enumerate(model.config.blocks):
                held.tables[session, block, : first_page(config, start)] = -1
            first = sum(part.count for part in parts)
            parts.append(held.memory.slice(start, count, row=first, session=session, long_context=long))
            x.append(inputs[session, start : start + count])
            lengths[session] += count
        out = model.forward(np.concatenate(x), parts, held.pool)
        for (session, _), part in zip(feed, parts, strict=True):
            rows[session].append(out[part.row : part.row + part.count].copy())
    return [np.concatenate(parts) for parts in rows]


def first_page(config: BlockConfig, start: int) -> int:
    """The first that a token at ``start`` sees."""
    if config.attention is None:
        return 0
    window, chunk = config.attention.window, config.attention.chunk
    first = max(0, start - window + 1) if window else start // chunk * chunk if chunk else 0
    return first // PAGE_TOKENS


def inputs_of(sessions: int = 3, seed: int = 7, width: int = HIDDEN) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((sessions, LENGTH, width), np.float32)


def check(checkpoint: Checkpoint, tolerance: float = 2e-5, **options: Any) -> None:
    inputs = inputs_of(width=checkpoint.config.row_width(0))
    long = options.get("long", False)
    for rows, x in zip(outputs(loaded(checkpoint), inputs, **options), inputs, strict=True):
        wanted = in_float64(checkpoint.config.blocks, x[: len(rows)].tobytes(), long)
        np.testing.assert_allclose(rows, wanted, atol=tolerance * np.abs(wanted).max(), rtol=0)


@lru_cache(maxsize=3 * len(ALL))
def in_float64(blocks: tuple[BlockConfig, ...], rows: bytes, long: bool = False) -> np.ndarray:
    """What ``blocks`` of ``checkpoint_of`` make of ``rows``."""
    x = np.frombuffer(rows, np.float32).reshape(-1, width_of(blocks))
    return reference(checkpoint_of(blocks), x, long=long)


@pytest.mark.parametrize("name", ALL)
def test_blocks_of_every_kind(name: str) -> None:
    check(checkpoint_of(ALL[name]))


@settings(deadline=None, max_examples=60)
@given(blocks=st.lists(block_configs() | blocks_with_states(), min_size=1, max_size=3), data=st.data())
def test_blocks_such_as_no_model_has(blocks: list[BlockConfig], data: st.DataObject) -> None:
    checkpoint, inputs = checkpoint_of(tuple(blocks)), inputs_of()
    left, feeds = [LENGTH] * 3, []
    for _ in range(data.draw(st.integers(1, 5))):
        feed = []
        for session in data.draw(st.permutations(range(3)))[: data.draw(st.integers(1, 3))]:
            count = min(left[session], data.draw(st.sampled_from([1, 1, 1, 2, 31, 33, 50])))
            left[session] -= count
            feed += [(session, count)] if count else []
        feeds += [feed] if feed else []
    for rows, x in zip(outputs(loaded(checkpoint), inputs, feeds), inputs, strict=True):
        if len(rows):
            wanted = reference(checkpoint, x[: len(rows)])
            np.testing.assert_allclose(rows, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)


@pytest.mark.parametrize(("kv_dtype", "tolerance"), [("float16", 5e-3), ("bfloat16", 3e-2), ("int8", 8e-2)])
@pytest.mark.parametrize("name", ["latent", "gemma", "mixed"])
def test_shapes_of_keys_and_values_share_a_pool(name: str, kv_dtype: str, tolerance: float) -> None:
    dense = tuple(block for block in CASES[name] if block.experts is None)  # rounding changes who is chosen
    check(checkpoint_of(dense), tolerance, kv_dtype=kv_dtype)


@pytest.mark.parametrize("name", ALL)
def test_sixteen_bits_stay_sixteen_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most rows come close: where a router nearly hesitates, rounding chooses other experts."""
    checkpoint = checkpoint_of(ALL[name])
    inputs = inputs_of(width=checkpoint.config.row_width(0))
    model = loaded(checkpoint, LoadOptions(device="mlx", dtype="bfloat16", quantize="none"))
    types, attend, compute = set(), PagedAttention.__call__, MlxBlock.__call__

    def spied(
        self: PagedAttention, block: int, scores: Scores, *qkv: mx.array | None, **how: bool
    ) -> mx.array:
        out = attend(self, block, scores, *qkv, **how)
        types.update(array.dtype for array in (*qkv, out) if array is not None)
        return out

    def watched(self: MlxBlock, *arguments: Any) -> mx.array:
        out = compute(self, *arguments)
        types.add(out.dtype)
        return out

    monkeypatch.setattr(PagedAttention, "__call__", spied)
    monkeypatch.setattr(MlxBlock, "__call__", watched)
    for rows, x in zip(outputs(model, inputs, kv_dtype="bfloat16"), inputs, strict=True):
        wanted = in_float64(checkpoint.config.blocks, x[: len(rows)].tobytes())
        errors = np.abs(rows - wanted).max(1) / np.abs(wanted).max()
        assert np.median(errors) < 5e-2
    assert types == {mx.bfloat16}


def test_long_sessions_turn_by_other_factors() -> None:
    check(checkpoint_of(CASES["longrope"]), long=True)


def test_rows_of_long_prompts_are_attended_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (scores, attention):
        monkeypatch.setattr(module, "MOST_SCORES", 500)
    for name in ("llama", "window", "chunk", "softcap", "latent", "indexer"):
        check(checkpoint_of(CASES[name]))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_index_keys_are_kept_as_the_c_kernels_keep_them(kv_dtype: str) -> None:
    """Rounding may choose another token for a row, here and there."""
    checkpoint, inputs = checkpoint_of(CASES["indexer"][:1]), inputs_of()
    options = LoadOptions(dtype="float32", quantize="none", kernels="native")
    native = load_backend(checkpoint, Span(0, checkpoint.config.n_blocks), options)
    models = loaded(checkpoint), native
    pairs = zip(*(outputs(model, inputs, kv_dtype=kv_dtype) for model in models), strict=True)
    for got, want in pairs:
        errors = np.abs(got - want).max(1) / np.abs(want).max(1)
        assert np.mean(errors > 1e-3) < 0.1


def with_experts_of(name: str, qtypes: Sequence[str]) -> Checkpoint:
    """A case whose experts' matrices have each one of ``qtypes``, the first ones the first."""
    plain = checkpoint_of(CASES[name])
    manifest = dict(plain.manifest)
    for tensor, info in plain.manifest.items():
        if ".experts." in tensor and tensor.endswith(".weight"):
            qtype = qtypes[min(int(tensor.split(".")[5]), len(qtypes) - 1)]
            size = info.shape[0] * row_bytes(qtype, info.shape[1])
            manifest[tensor] = replace(info, qtype=qtype, nbytes=size)
    return random_checkpoint(plain.config, manifest, range(plain.config.n_blocks))


@pytest.mark.parametrize(
    ("qtypes", "held"),
    [
        (["BF16"], "float32"),
        (["Q4_0"], "int4 (Q4_0)"),
        (["Q8_0"], "int8 (Q8_0)"),
        (["MLX4_32_F32"], "int4 (MLX4_32_F32)"),
        (["MLX6_32"], "int6 (MLX6_32)"),
        (["MXFP4"], "fp4 (MXFP4)"),
        (["Q8_0", "Q4_0"], "float32"),  # several forms
    ],
)
@pytest.mark.parametrize("name", ["experts", "gpt-oss", "weighted inputs", "deepseek"])
def test_experts_are_held_as_in_the_file(name: str, qtypes: list[str], held: str) -> None:
    checkpoint, inputs = with_experts_of(name, qtypes), inputs_of()
    model = loaded(checkpoint, LoadOptions(device="mlx"))
    assert set(model.weights.split(" + ")) == {held, "float32"}
    for rows, x in zip(outputs(model, inputs), inputs, strict=True):
        wanted = reference(checkpoint, x[: len(rows)])
        np.testing.assert_allclose(rows, wanted, atol=2e-5 * np.abs(wanted).max(), rtol=0)


@pytest.mark.parametrize("quantize", ["int4", "int8"])
def test_no_router_is_rounded(quantize: str) -> None:
    checkpoint = checkpoint_of(CASES["shared expert with a gate"])
    plan = MlxPlan.resolve(LoadOptions(device="mlx", quantize=quantize), "F32")
    weights = load_block(MlxLoader(checkpoint, plan), checkpoint.config, 0)
    held = weights.experts
    assert held is not None
    assert isinstance(weights.attention.out, GroupedLinear), "others are rounded"
    x = np.random.default_rng(3).standard_normal((5, HIDDEN), np.float32)
    for name, linear in (("router", held.router), ("shared_expert_gate", held.shared_gate)):
        exact = checkpoint.tensor(f"model.layers.0.mlp.{name}.weight").dequantize()
        np.testing.assert_allclose(np.array(linear(mx.array(x))), x @ exact.T, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["deepseek", "gpt-oss", "sparsemixer", "softcap", "mixed", "different states", "nemotron"]
)
def test_rows_that_are_not_finite_stay_their_sessions_own(name: str) -> None:
    checkpoint = checkpoint_of(ALL[name])
    inputs = inputs_of(width=checkpoint.config.row_width(0))
    inputs[0] = np.nan
    inputs[1, ::3] = np.inf
    rows = outputs(loaded(checkpoint), inputs)
    assert not np.isfinite(rows[0]).any()
    wanted = reference(checkpoint, inputs[2, : len(rows[2])])
    np.testing.assert_allclose(rows[2], wanted, atol=2e-5 * np.abs(wanted).max(), rtol=0)


@pytest.mark.slow  # a C++ compiler's seconds
@pytest.mark.parametrize("name", ["delta", "channels", "mamba", "attention beside mamba"])
def test_what_a_gpu_compiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for function in (device.fused, device.compiled):
        function.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(device, "on_gpu", lambda: True)
        check(checkpoint_of(ALL[name]))
    for function in (device.fused, device.compiled):
        assert function.cache_info().currsize
        function.cache_clear()
