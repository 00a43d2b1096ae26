"""The span in C against the plain path, and its promise: a row's bits depend on nothing but its own past."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.blocks.attention import KvShape
from swarm_node.shards.kernels import library as native_library
from swarm_node.shards.kernels.library import ThreadPool, library
from swarm_node.shards.kernels.linear import NativeLinear
from swarm_node.shards.layers.kv_pool import BatchSlice, KvPool
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.shards.models.block_weights import AttentionWeights, BlockWeights, MlpWeights
from swarm_node.shards.models.load_plan import LoadOptions, resolve
from swarm_node.shards.torch.block import Block
from swarm_node.shards.torch.span import TorchSpan
from swarm_node.shards.torch.tensors.device import Target
from swarm_node.shards.torch.tensors.linear import DenseLinear, Scratch
from swarm_node.shards.torch.tensors.norm import RmsNorm
from swarm_node.shards.torch.tensors.rope import TorchRope
from swarm_node.swarm.errors import LocalProtocolError
from swarm_node.swarm.runtime.c_build import NativeUnavailableError
from swarm_node.swarm.types import Span

HFLlama = Callable[..., Path]
MakeSessions = Callable[..., Any]

SHAPES: dict[str, dict[str, Any]] = {
    "head-16": {},
    "head-8-mqa": {"num_attention_heads": 8, "num_key_value_heads": 1},
    "head-64-uneven": {
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "intermediate_size": 160,
    },
    "hidden-40": {
        "hidden_size": 40,
        "intermediate_size": 88,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 24,
    },
    "dynamic": {
        "max_position_embeddings": 16,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5000.0},
    },
}
FEEDS = [[(0, 1)], [(0, 70), (1, 1), (2, 3)], [(2, 1), (0, 1), (1, 33)], [(1, 1), (2, 130)], [(0, 2), (2, 1)]]
"""(session, tokens) of each batch; rows go past a page, a tile and several of each."""
TOKENS = 160


def rows_of(feeds: list[list[tuple[int, int]]], hidden: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(sum(count for _, count in feed), hidden, generator=generator) for feed in feeds]


def feed_all(
    sessions: MakeSessions,
    model: SpanBackend[Any],
    feeds: list[list[tuple[int, int]]] = FEEDS,
    **options: Any,
) -> list[Tensor]:
    fed = sessions(model, count=3, tokens=TOKENS, **options)
    xs = rows_of(feeds, model.config.hidden_size)
    return [fed.forward(x, feed) for x, feed in zip(xs, feeds, strict=True)]


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory, hf_llama_in: HFLlama) -> Callable[..., SpanBackend[Any]]:
    """``spans(shape, kernels=..., quantize=..., threads=...)``: four blocks with weights of usual size."""
    folders: dict[str, Path] = {}

    def load(shape: str = "head-16", *, threads: int = 1, **options: str) -> SpanBackend[Any]:
        if shape not in folders:
            folders[shape] = hf_llama_in(
                tmp_path_factory.mktemp(shape), scale=lambda cols: cols**-0.5, **SHAPES[shape]
            )
        wanted = replace(LoadOptions(dtype="float32", quantize="none", kernels="native"), **options)
        with open_checkpoint(str(folders[shape])) as checkpoint:
            return load_backend(checkpoint, Span(0, 4), wanted, threads=threads)

    return load


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_like_the_plain_path(
    spans: Callable[..., SpanBackend[Any]], sessions: MakeSessions, shape: str, threads: int
) -> None:
    native, plain = spans(shape, threads=threads), spans(shape, kernels="torch")
    assert (native.kernels, plain.kernels) == ("native exact", "torch")
    for got, want in zip(feed_all(sessions, native), feed_all(sessions, plain), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kv_dtype", ["float16", "bfloat16", "int8"])
def test_kv_types(spans: Callable[..., SpanBackend[Any]], sessions: MakeSessions, kv_dtype: str) -> None:
    """Both paths round keys and values alike, so they differ by a rounding that fell the other way here and
    there."""
    got = feed_all(sessions, spans(threads=2), kv_dtype=kv_dtype)
    want = feed_all(sessions, spans(kernels="torch"), kv_dtype=kv_dtype)
    exact = feed_all(sessions, spans(kernels="torch"))
    for a, b, c in zip(got, want, exact, strict=True):
        error, rounding = (a - b).norm(), (b - c).norm()
        assert error < rounding


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
@pytest.mark.parametrize("shape", ["head-16", "head-64-uneven"])
def test_a_rows_bits_depend_on_its_own_past_alone(
    spans: Callable[..., SpanBackend[Any]], sessions: MakeSessions, shape: str, quantize: str
) -> None:
    """Batched, in chunks of every size, on one to three threads, and in other slots: the same bits."""
    want = feed_all(sessions, spans(shape, quantize=quantize))
    by_session = [
        torch.cat([t for x, feed in zip(want, FEEDS, strict=True) for t in part(x, feed, s)])
        for s in range(3)
    ]
    inputs = rows_of(FEEDS, spans(shape).config.hidden_size)
    alone = [
        torch.cat([t for x, feed in zip(inputs, FEEDS, strict=True) for t in part(x, feed, s)])
        for s in range(3)
    ]
    for threads, chunk in ((1, 1), (2, 5), (3, 64), (2, 1000)):
        model = spans(shape, quantize=quantize, threads=threads)
        assert model.kernels == "native exact"
        for x, expected in zip(alone, by_session, strict=True):
            fed = sessions(model, tokens=TOKENS, seed=threads)
            got = torch.cat([fed.forward(rows) for rows in x.split(chunk)])
            assert torch.equal(got, expected)
        for got_all, want_all in zip(feed_all(sessions, model, seed=9), want, strict=True):
            assert torch.equal(got_all, want_all)


def part(x: Tensor, feed: list[tuple[int, int]], session: int) -> list[Tensor]:
    """The rows of one session."""
    pieces = zip(feed, x.split([count for _, count in feed]), strict=True)
    return [rows for (owner, _), rows in pieces if owner == session]


@pytest.mark.parametrize(("kernels", "tolerance"), [("native", 1e-5), ("fast", 0.05)])
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantized_against_float32_products_with_the_same_weights(
    spans: Callable[..., SpanBackend[Any]],
    sessions: MakeSessions,
    quantize: str,
    kernels: str,
    tolerance: float,
) -> None:
    native = spans(quantize=quantize, kernels=kernels)
    blocks, config = [], native.config
    plan = resolve(LoadOptions(dtype="float32", kernels="torch"), "F32")
    target, settings = Target.of(plan), config.blocks[0]
    assert settings.attention.rope is not None
    rope = TorchRope(settings.attention.rope, target.device, target.dtype)
    for block in (block.weights for block in spans(quantize=quantize)._blocks):
        norm, mlp_norm = (
            RmsNorm(torch.from_numpy(norm.weight), config.final_norm.eps)
            for norm in (block.norm, block.mlp_norm)
        )
        attention = AttentionWeights(*map(dense, block.attention[:2]))
        weights = BlockWeights(attention, norm, mlp_norm=mlp_norm, mlp=MlpWeights(*map(dense, block.mlp)))
        blocks.append(Block(settings, weights, rope, target))
    plain = TorchSpan(config=config, span=native.span, blocks=blocks, plan=plan)
    for got, want in zip(feed_all(sessions, native), feed_all(sessions, plain), strict=True):
        assert ((got - want).norm() / want.norm()).item() < tolerance


def dense(linear: NativeLinear) -> DenseLinear:
    """The matrix that a linear multiplies by, from what it makes of unit vectors."""
    values = linear(np.eye(linear.struct.cols, dtype=np.float32)).T
    return DenseLinear(torch.from_numpy(np.ascontiguousarray(values)), None, Scratch())


@settings(max_examples=40)
@given(data=st.data())
def test_random_schedules(
    data: st.DataObject, spans: Callable[..., SpanBackend[Any]], sessions: MakeSessions
) -> None:
    """Ragged batches of four sessions in any order, over any sub-span."""
    start = data.draw(st.integers(0, 3))
    span = Span(start, data.draw(st.integers(start + 1, 4)))
    native, plain = loaded(spans, threads=data.draw(st.integers(1, 2))), loaded(spans, kernels="torch")
    fed = [sessions(model, count=4, tokens=TOKENS) for model in (native, plain)]
    for _ in range(data.draw(st.integers(1, 4))):
        chosen = data.draw(st.lists(st.integers(0, 3), min_size=1, unique=True))
        room = [min(TOKENS - fed[0].lengths[session], 70) for session in chosen]
        steps = [(s, data.draw(st.integers(1, most))) for s, most in zip(chosen, room, strict=True) if most]
        x = rows_of([steps], 64)[0]
        if steps:
            got, want = (one.forward(x, steps, span) for one in fed)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


_models: dict[tuple[Any, ...], SpanBackend[Any]] = {}


def loaded(spans: Callable[..., SpanBackend[Any]], **options: Any) -> SpanBackend[Any]:
    key = tuple(options.items())
    if key not in _models:
        _models[key] = spans(**options)
    return _models[key]


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ({"row": 1}, 4),
        ({"count": 0}, 0),
        ({"count": 3}, 4),
        ({"start": 30}, 4),
        ({"start": -1}, 4),
        ({"first_block": 1}, 4),
        ({"table": np.zeros((3, 1), np.int32)}, 4),
        ({"table": np.zeros((4, 1), np.int64)}, 4),
        ({"table": np.zeros((4, 2), np.int32)[:, :1]}, 4),
    ],
    ids=str,
)
def test_pieces_that_do_not_fit_are_refused(
    spans: Callable[..., SpanBackend[Any]], change: dict[str, Any], rows: int
) -> None:
    model = loaded(spans, threads=1)
    pool = KvPool(4, [KvShape(2, 16, 16)], "float32")
    piece = BatchSlice(np.arange(4, dtype=np.int32).reshape(4, 1), 0, 0, 0, 4)
    model.forward(np.zeros((4, 64), np.float32), [piece], pool)
    with pytest.raises(LocalProtocolError):
        model.forward(np.zeros((rows, 64), np.float32), [replace(piece, **change)], pool)


def test_other_memory_than_the_models_is_refused(spans: Callable[..., SpanBackend[Any]]) -> None:
    piece = BatchSlice(np.arange(4, dtype=np.int32).reshape(4, 1), 0, 0, 0, 4)
    for pool in (
        KvPool(4, [KvShape(1, 16, 16)], "float32"),
        KvPool(4, [KvShape(2, 8, 8)], "float32"),
    ):
        with pytest.raises(LocalProtocolError, match="KV memory"):
            loaded(spans, threads=1).forward(np.zeros((4, 64), np.float32), [piece], pool)
    with pytest.raises(LocalProtocolError, match="rows of 60 values: block 0 reads 64"):
        loaded(spans, threads=1).forward(
            np.zeros((4, 60), np.float32), [piece], KvPool(4, [KvShape(2, 16, 16)], "int8")
        )


def test_a_narrower_pool_computes_the_same_bits(
    spans: Callable[..., SpanBackend[Any]], sessions: MakeSessions
) -> None:
    want = feed_all(sessions, spans(threads=1))
    model = spans(threads=3)
    feeds = list(zip(rows_of(FEEDS, model.config.hidden_size), FEEDS, want, strict=True))
    for widths in ((1, 1, 1, 1, 1), (2, 2, 2, 2, 2), (3, 1, 2, 1, 3), (99, 0, 3, 2, 1)):
        fed = sessions(model, count=3, tokens=TOKENS)
        for width, (x, feed, rows) in zip(widths, feeds, strict=True):
            model.use_threads(width)
            torch.testing.assert_close(fed.forward(x, feed), rows, rtol=0, atol=0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the names of threads")
@pytest.mark.parametrize("width", [1, 3, 4])
def test_threads_end_with_the_model(
    spans: Callable[..., SpanBackend[Any]], sessions: MakeSessions, width: int
) -> None:
    before = worker_threads()
    model = spans(threads=4)
    model.use_threads(width)
    sessions(model).forward(torch.zeros(40, 64))
    new = worker_threads() - before
    assert len(new) == 3
    del model
    gc.collect()
    assert not new & worker_threads()


def worker_threads() -> set[str]:
    """The kernels' own: torch and others start threads, too."""
    tasks = Path("/proc/self/task").iterdir()
    return {task.name for task in tasks if (task / "comm").read_text().strip() == native_library.WORKER_NAME}


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_thread_counts_that_cannot_be(threads: int) -> None:
    if threads > 1:
        with pytest.raises(OSError, match="cannot start"):
            ThreadPool(threads)
    else:
        assert ThreadPool(threads).handle is None


def test_without_the_library_torch_computes(
    spans: Callable[..., SpanBackend[Any]], sessions: MakeSessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = sessions(spans()).forward(torch.ones(3, 64))
    monkeypatch.setenv("SWARM_NODE_NATIVE", "0")
    native_library.library.cache_clear()
    try:
        with pytest.raises(NativeUnavailableError, match="SWARM_NODE_NATIVE"):
            library()
        model = spans(kernels="auto")
        assert model.kernels == "torch"
        torch.testing.assert_close(sessions(model).forward(torch.ones(3, 64)), want, rtol=1e-4, atol=1e-4)
    finally:
        native_library.library.cache_clear()


MIXES: dict[str, dict[str, str]] = {
    "Q4_K": {"attn_v": "Q6_K", "ffn_down": "Q6_K", "ffn_up": "Q5_K"},
    "Q2_K": {
        "attn_k": "Q3_K",
        "attn_v": "Q4_K",
        "attn_output": "Q3_K",
        "ffn_down": "IQ4_XS",
        "ffn_gate": "BF16",
    },
    "Q5_1": {"attn_q": "Q5_0", "attn_v": "Q8_0", "ffn_up": "IQ4_NL", "ffn_down": "Q4_1"},
}
"""As quantizers mix types: of most matrices, and of others by the ends of their names."""


@pytest.mark.parametrize("qtype", MIXES)
def test_files_of_mixed_types(gguf_llama: Callable[..., Path], sessions: MakeSessions, qtype: str) -> None:
    """The file's own values, in any batch the same bits."""
    with open_checkpoint(str(gguf_llama(qtype, others=MIXES[qtype]))) as checkpoint:
        native = load_backend(checkpoint, Span(0, 2), LoadOptions(dtype="float32", kernels="native"))
        plain = load_backend(
            checkpoint, Span(0, 2), LoadOptions(dtype="float32", kernels="torch", quantize="none")
        )
    assert native.kernels == "native exact"
    assert {f"({each})" for each in (qtype, *MIXES[qtype].values()) if each != "BF16"} <= set(
        native.weights.split()
    )
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((19, 256), np.float32))
    whole = sessions(native).forward(x)
    want = sessions(plain).forward(x)
    assert (whole - want).norm() / want.norm() < 1e-4
    alone = sessions(native)
    assert torch.equal(torch.cat([alone.forward(row) for row in x.split(1)]), whole)
