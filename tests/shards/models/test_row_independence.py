"""With ``deterministic`` a row has the same bits alone, in any batch, in any chunks, and computed again."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.kernels import library, linear
from swarm_node.shards.layers.kv_pool import KV_DTYPES
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.shards.models.determinism_check import check_determinism
from swarm_node.shards.models.load_plan import LoadOptions, resolve
from swarm_node.shards.native.span import NativeSpan, load_native_span
from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.types import Span
from tests.shards.conftest import any_schedule
from tests.shards.models.block_cases import CASES, checkpoint_of, width_of
from tests.shards.models.state_cases import STATES

pytestmark = pytest.mark.slow

HFLlama = Callable[..., Path]
MakeSessions = Callable[..., Any]

BLOCKS, TOKENS = 2, 72
WAYS: dict[str, dict[str, str]] = {
    "native float32": {"dtype": "float32", "quantize": "none"},
    "native float16 weights": {"quantize": "none", "weights": "float16"},
    "native bfloat16 weights": {"quantize": "none", "weights": "bfloat16"},
    "native int8": {"quantize": "int8"},
    "native int4": {"quantize": "int4"},
    "native int4, one digit": {"quantize": "int4", "kernels": "fast"},
    "torch float32": {"dtype": "float32", "quantize": "none", "kernels": "torch"},
    "torch bfloat16": {"dtype": "bfloat16", "quantize": "none"},
    "torch float16": {"dtype": "float16", "quantize": "none"},
    "torch int8": {"quantize": "int8", "kernels": "torch"},
    "torch int4": {"quantize": "int4", "kernels": "torch"},
    "torch bfloat16, int4 weights": {"dtype": "bfloat16", "quantize": "int4"},
}
Load = Callable[..., SpanBackend[Any]]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory, hf_llama_in: HFLlama) -> Load:
    """``load(way, deterministic=True, threads=1, shape={})``; widths that fill no vector evenly."""
    folders: dict[str, Path] = {}
    models: dict[str, SpanBackend[Any]] = {}

    def loaded(
        way: str, *, deterministic: bool = True, threads: int = 1, shape: dict[str, Any] | None = None
    ) -> SpanBackend[Any]:
        key = repr((way, deterministic, threads, shape))
        if key not in models:
            options = dict(WAYS[way])
            dtype = options.pop("weights", "float32")
            folder = repr((dtype, shape))
            if folder not in folders:
                folders[folder] = hf_llama_in(
                    tmp_path_factory.mktemp("model"),
                    num_hidden_layers=BLOCKS,
                    scale=lambda cols: cols**-0.5,
                    dtype=getattr(torch, dtype),
                    **({"hidden_size": 96, "intermediate_size": 160} | (shape or {})),
                )
            wanted = replace(LoadOptions(), deterministic=deterministic, **options)
            with open_checkpoint(str(folders[folder])) as checkpoint:
                models[key] = load_backend(checkpoint, Span(0, BLOCKS), wanted, threads=threads)
            assert models[key].kernels.startswith(way.split()[0])
        return models[key]

    return loaded


def inputs(hidden: int, session: int) -> torch.Tensor:
    return torch.randn(TOKENS, hidden, generator=torch.Generator().manual_seed(session))


def token_by_token(
    model: SpanBackend[Any], sessions: MakeSessions, kv_dtype: str, session: int
) -> torch.Tensor:
    alone = sessions(model, tokens=TOKENS, kv_dtype=kv_dtype)
    return torch.cat([alone.forward(row) for row in inputs(model.config.hidden_size, session).split(1)])


_known: dict[tuple[int, str, int], torch.Tensor] = {}


@pytest.mark.parametrize(("way", "kv_dtype"), zip(WAYS, KV_DTYPES * 3, strict=True))
@settings(max_examples=8)
@given(data=st.data())
def test_any_schedule_gives_the_bits_of_token_by_token(
    data: st.DataObject, load: Load, sessions: MakeSessions, way: str, kv_dtype: str
) -> None:
    """Ragged batches of three sessions in any order; sessions go back and are fed again, other slots, the
    blocks in two goes, one or two threads."""
    model = load(way, threads=data.draw(st.integers(1, 2)) if way.startswith("native") else 1)
    xs = [inputs(model.config.hidden_size, session) for session in range(3)]
    fed = sessions(model, count=3, tokens=TOKENS, kv_dtype=kv_dtype, seed=data.draw(st.integers(0, 3)))
    for session, start, rows in any_schedule(data, fed, xs):
        key = (id(load(way)), kv_dtype, session)
        if key not in _known:
            _known[key] = token_by_token(load(way), sessions, kv_dtype, session)
        assert torch.equal(rows, _known[key][start : start + len(rows)]), (way, kv_dtype, start)


@pytest.mark.parametrize("way", ["native int4", "torch float32", "torch bfloat16", "torch int8"])
@pytest.mark.parametrize(
    "shape",
    [
        {"hidden_size": 40, "intermediate_size": 88, "num_attention_heads": 6, "head_dim": 24},
        {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 64},
        {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 8},
    ],
    ids=["odd", "no-groups", "one-kv-head"],
)
def test_other_shapes(load: Load, way: str, shape: dict[str, Any]) -> None:
    model = load(way, shape=shape)
    assert check_determinism(model, "float16") != ""


@pytest.mark.parametrize("way", ["native int4", "torch bfloat16"])
def test_rope_that_depends_on_the_length(load: Load, sessions: MakeSessions, way: str) -> None:
    """Frequencies that follow the length of the sequence: here that up to each row, not up to its chunk."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5000.0}
    model = load(way, shape={"max_position_embeddings": 16, "rope_parameters": rope})
    want = token_by_token(model, sessions, "float32", 0)
    fed = sessions(model, tokens=TOKENS)
    got = torch.cat([fed.forward(x) for x in inputs(model.config.hidden_size, 0).split([10, 20, 42])])
    assert torch.equal(got, want)


@pytest.fixture(scope="module")
def digest(load: Load) -> Callable[[str, str], str]:
    """Of a way to compute with a type of keys and values, on one thread: computed once."""
    return cache(lambda way, kv_dtype: check_determinism(load(way), kv_dtype))


Digest = Callable[[str, str], str]


@pytest.mark.parametrize("way", ["native int8", "torch float32"])
def test_thread_counts(load: Load, digest: Digest, way: str) -> None:
    assert check_determinism(load(way, threads=2), "float16") == digest(way, "float16")


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_the_check_holds(digest: Digest, way: str, kv_dtype: str) -> None:
    assert len(digest(way, kv_dtype)) == 12


@pytest.mark.parametrize("way", WAYS)
def test_the_digest_is_the_same_again(load: Load, digest: Digest, way: str) -> None:
    assert check_determinism(load(way), "float16") == digest(way, "float16")


@pytest.mark.parametrize("way", ["torch float32", "torch int8", "torch int4"])
def test_the_check_finds_kernels_that_depend_on_the_batch(load: Load, way: str) -> None:
    with pytest.raises(UsageError, match=r"torch kernels .* token \d+ has other bits") as caught:
        check_determinism(load(way, deterministic=False), "float32")
    assert "--kernels native" in caught.value.hint


class Leaky(NativeSpan):
    """A row depends on what the pages held before."""

    def forward(self, x: np.ndarray, pieces: Any, pool: Any, span: Span | None = None) -> np.ndarray:
        (shape,) = pool.shapes
        before = pool.part(shape).keys[pieces[0].table[0, 0], 0, -1, -1].copy()
        return super().forward(x, pieces, pool, span) + before


def test_the_check_finds_what_was_left_in_a_page(load: Load) -> None:
    model = Leaky.__new__(Leaky)
    vars(model).update(vars(load("native float32")))
    with pytest.raises(UsageError, match="other bits"):
        check_determinism(model, "float32")


def test_where_nothing_can_be_compiled_torch_computes_row_by_row(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARM_NODE_NATIVE", "0")
    library.library.cache_clear()
    try:
        WAYS["torch because it must"] = {"quantize": "int4"}
        model = load("torch because it must")
        assert model.kernels == "torch rowwise"
        assert check_determinism(model, "int8")
    finally:
        del WAYS["torch because it must"]
        library.library.cache_clear()


@pytest.fixture(params=["avx2", "plain C"])
def other_instructions(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, ...]]:
    """The kernels compiled for narrower vectors than this CPU has, with fused multiply-add. Plain C is not
    optimized, which changes no bit: that alone takes a compiler a minute."""
    flags: tuple[str, ...] = ("-DSN_PORTABLE", "-O0") if request.param == "plain C" else ()
    if platform.machine() in ("x86_64", "AMD64"):
        if "avx2" not in Path("/proc/cpuinfo").read_text():
            pytest.skip("this CPU has no AVX2 and no fused multiply-add")
        flags += ("-march=x86-64-v3",)
    elif not flags:
        pytest.skip("this is no x86-64 CPU")
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, *flags))
    library.library.cache_clear()
    linear._kernels.cache_clear()
    yield flags
    library.library.cache_clear()
    linear._kernels.cache_clear()


NATIVE = [way for way in WAYS if way.startswith("native")]


@pytest.fixture(scope="module")
def digests_here(digest: Digest) -> dict[tuple[str, str], str]:
    return {(way, kv): digest(way, kv) for way, kv in zip(NATIVE, KV_DTYPES * 2, strict=False)}


def test_other_instruction_sets_give_the_same_bits(
    digests_here: dict[tuple[str, str], str], other_instructions: tuple[str, ...], load: Load
) -> None:
    """Of whole blocks: products, attention, norms and activations."""
    afresh = {"bos_token_id": 1 + len(other_instructions)}  # so that the spans are loaded again
    for (way, kv_dtype), here in digests_here.items():
        assert check_determinism(load(way, shape=afresh), kv_dtype) == here, way


KINDS = CASES | STATES


def rows_of_kind(sessions: MakeSessions, case: str) -> torch.Tensor:
    """Many rows that go together, then each alone, over the ends of pages and of what windows see."""
    blocks = KINDS[case]
    plan = resolve(LoadOptions(kernels="native"), "F32")
    model = load_native_span(checkpoint_of(blocks), Span(0, len(blocks)), plan)
    fed = sessions(model, kv_dtype="float16")
    x = torch.randn(44, width_of(blocks), generator=torch.Generator().manual_seed(2))
    return torch.cat([fed.forward(part) for part in x.split([29, *[1] * 6, 3, *[1] * 6])])


@pytest.fixture(scope="module")
def rows_of_kinds(sessions: MakeSessions) -> dict[str, torch.Tensor]:
    return {case: rows_of_kind(sessions, case) for case in KINDS}


def test_other_instruction_sets_give_the_same_bits_of_any_block(
    rows_of_kinds: dict[str, torch.Tensor], sessions: MakeSessions, other_instructions: tuple[str, ...]
) -> None:
    differ = [
        case for case, rows in rows_of_kinds.items() if not torch.equal(rows_of_kind(sessions, case), rows)
    ]
    assert not differ
