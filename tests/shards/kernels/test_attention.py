"""The C attention against softmax written out over what the pool holds, and against itself, bit for bit."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import swarm_node.shards
from swarm_node.shards.formats.block_config import AttentionConfig
from swarm_node.shards.kernels.pages import SnPiece, attention_struct, kv_struct
from swarm_node.shards.layers.kv_pool import KV_DTYPES, BatchSlice
from swarm_node.shards.torch.attention import PagedAttention
from swarm_node.shards.torch.kv_pool import TorchKvPool
from swarm_node.swarm.runtime.c_build import NativeUnavailableError, load_library
from tests.shards.torch.kv_cases import CPU, PagedSession, shuffled_sessions, softmax_attention, soil, stored

SOURCES = Path(next(iter(swarm_node.shards.__path__))) / "kernels/csrc"
X86 = platform.machine() in ("x86_64", "AMD64")
# Every width of vector that this machine can run; SSE2 is plain C without fused multiply-add.
BUILDS: dict[str, tuple[str, ...]] = {"this CPU": ()}
BUILDS |= {"AVX2": ("-mno-avx512f",), "SSE2": ("-march=x86-64",)} if X86 else {"plain C": ("-DSN_PORTABLE",)}
INT64 = ctypes.c_int64


class Memory:
    """A pool for blocks of ``config``, full of what must never be read."""

    def __init__(self, n_slots: int, config: AttentionConfig, kv_dtype: str) -> None:
        self.config, self.pool = config, TorchKvPool(n_slots, (config.kv,), kv_dtype, CPU)
        self.part = self.pool.part(config.kv)
        soil(self.part.held)
        self.attention = attention_struct(config)
        arrays = {"data": self.pool.data.numpy(), "slot_bytes": self.pool.slot_bytes, "kv_dtype": kv_dtype}
        self.kv = kv_struct(cast(Any, SimpleNamespace(**arrays)))


class Kernels:
    """The functions of ``attention.h`` on torch tensors."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.sn_attend_scratch.restype = INT64

    def append(self, memory: Memory, part: BatchSlice, block: int, k: Tensor, v: Tensor) -> None:
        """``k`` (batch rows, kv_heads * key_dim), ``v`` likewise, perhaps views of wider rows."""
        assert k.stride(0) == v.stride(0)
        self._library.sn_kv_append(
            *(ctypes.byref(memory.attention), ctypes.byref(memory.kv), ctypes.byref(c_struct(part))),
            *(block, at(k), at(v), INT64(k.stride(0)), 0, memory.config.kv.heads),
        )

    def rows(
        self,
        memory: Memory,
        part: BatchSlice,
        block: int,
        q: Tensor,
        *,
        first: int = 0,
        heads: tuple[int, int] | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Rows ``first`` to ``first + len(q)`` of the slice: ``q`` (n, q_size) → (n, out_size). ``heads``:
        the first of them and their end; all by default."""
        config, attention = memory.config, ctypes.byref(memory.attention)
        out = torch.full((len(q), config.out_size), float("nan")) if out is None else out
        # Exactly what is asked for, at an odd place, with a mark behind it.
        scratch = torch.full((self._library.sn_attend_scratch(attention) + 1 + 64,), 12345.0)
        self._library.sn_attend(
            *(attention, ctypes.byref(memory.kv), ctypes.byref(c_struct(part)), block, first, len(q)),
            *(at(q), INT64(q.stride(0)), at(out), INT64(out.stride(0)), *(heads or (0, config.heads))),
            at(scratch[1:]),
        )
        assert (scratch[-64:] == 12345.0).all(), "wrote beyond the scratch memory"
        return out


def at(tensor: Tensor) -> ctypes.c_void_p:
    assert tensor.dtype is torch.float32
    return ctypes.c_void_p(tensor.data_ptr())


def c_struct(part: BatchSlice) -> SnPiece:
    return SnPiece(
        part.table.ctypes.data, part.table.shape[1], part.first_block, part.row, part.start, part.count
    )


def gqa(heads: int, kv_heads: int, head_dim: int) -> AttentionConfig:
    return AttentionConfig(heads, kv_heads, head_dim, head_dim**-0.5, None)


@pytest.fixture(scope="module", params=BUILDS, ids=lambda name: name.replace(" ", "-"))
def kernels(request: pytest.FixtureRequest) -> Kernels:
    sources = [SOURCES / "attention.c", SOURCES / "kv_append.c"]
    try:
        return Kernels(load_library("attention", sources, BUILDS[request.param]))
    except NativeUnavailableError as error:
        pytest.skip(str(error))


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32)


HEAD_SHAPES = [
    (9, 3, 64),
    (8, 8, 80),
    (8, 2, 96),
    (4, 1, 128),
    (6, 2, 8),
    (5, 1, 72),
    (60, 1, 40),
    (14, 2, 24),
]
head_shapes = st.sampled_from(HEAD_SHAPES)
kv_dtypes = st.sampled_from(KV_DTYPES)


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEAD_SHAPES)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_batches_match_plain_softmax(
    kernels: Kernels, heads: int, kv_heads: int, head_dim: int, kv_dtype: str
) -> None:
    """Prompts, chunks that begin and end within pages, decode; sessions that hold different blocks."""
    torch.manual_seed(0)
    sessions, n_slots = shuffled_sessions([(3, 2, 200), (1, 4, 200), (2, 3, 200)])
    memory = Memory(n_slots, gqa(heads, kv_heads, head_dim), kv_dtype)
    width, kv_width = heads * head_dim, kv_heads * head_dim
    for chunks in [[(0, 1)], [(0, 100), (1, 2), (2, 1)], [(0, 1), (1, 90), (2, 1)], [(2, 1), (1, 33)]]:
        row = 0
        total = sum(count for _, count in chunks)
        fused = torch.randn(total, width + 2 * kv_width)
        q, k, v = fused.split([width, kv_width, kv_width], 1)
        for key, count in chunks:
            part = sessions[key].part(row, count)
            rows = slice(row, row + count)
            for block in (3, 4):
                kernels.append(memory, part, block, k, v)
                out = kernels.rows(memory, part, block, q[rows])
                held = stored(memory.part, sessions[key], block, part.start + count)
                wanted = softmax_attention(q[rows].view(count, heads, head_dim), *held, part.start)
                torch.testing.assert_close(out.double(), wanted, atol=3e-6, rtol=3e-6)
            row += count
            sessions[key].length += count


@settings(max_examples=60, deadline=None)
@given(kv_dtypes, head_shapes, st.integers(0, 100), st.integers(1, 80), st.integers(0, 10**6))
def test_a_row_does_not_depend_on_the_others(
    kernels: Kernels, kv_dtype: str, shape: tuple[int, int, int], start: int, count: int, seed: int
) -> None:
    """Alone, in any cut of the rows, by heads, on other slots, beside other values: the same bits."""
    heads, kv_heads, head_dim = shape
    torch.manual_seed(seed)
    q = torch.randn(count, heads * head_dim) * 3
    k, v = torch.randn(2, start + count, kv_heads * head_dim).unbind()
    results = []
    for layout in range(2):
        (session,), n_slots = shuffled_sessions([(0, 1, start + count)], seed=layout, spare=layout)
        memory = Memory(n_slots, gqa(heads, kv_heads, head_dim), kv_dtype)
        kernels.append(memory, BatchSlice(session.table, 0, 0, 0, start + count), 0, k, v)
        session.length = start
        results.append((memory, session.part(0, count)))
    memory, part = results[0]
    whole = kernels.rows(memory, part, 0, q)
    assert whole.isfinite().all()
    assert torch.equal(bits(whole), bits(kernels.rows(*results[1], 0, q)))
    for index in range(count):
        assert torch.equal(
            bits(whole[index]), bits(kernels.rows(memory, part, 0, q[index : index + 1], first=index)[0])
        )
    cut = seed % count
    for rows in (slice(0, cut), slice(cut, count)):
        if rows.stop > rows.start:
            some_rows = kernels.rows(memory, part, 0, q[rows], first=rows.start)
            assert torch.equal(bits(some_rows), bits(whole[rows]))
    by_heads = torch.full_like(whole, float("nan"))
    middle = seed % heads
    for some in ((0, middle), (middle, heads)):
        kernels.rows(memory, part, 0, q, heads=some, out=by_heads)
    assert torch.equal(bits(by_heads), bits(whole))
    # What comes after a row, even if it is broken, does not reach it.
    kernels.append(memory, BatchSlice(part.table, 0, 0, start + count - 1, 1), 0, k[:1] * float("nan"), v[:1])
    assert torch.equal(bits(kernels.rows(memory, part, 0, q)[:-1]), bits(whole[:-1]))


@settings(max_examples=60, deadline=None)
@given(kv_dtypes, head_shapes, st.integers(0, 70), st.integers(1, 40), st.integers(0, 10**6))
def test_stores_what_torch_stores(
    kernels: Kernels, kv_dtype: str, shape: tuple[int, int, int], start: int, count: int, seed: int
) -> None:
    """The same bytes at the same places, for values of every size, rows of zeros and ties."""
    heads, kv_heads, head_dim = shape
    torch.manual_seed(seed)
    (session,), n_slots = shuffled_sessions([(0, 1, start + count)], seed)
    session.length = start
    size = torch.pow(10.0, torch.randint(-12, 7, (2, count, kv_heads, head_dim)).float())
    k, v = (torch.randn(2, count, kv_heads, head_dim) * size).unbind()
    k[0, 0] = 0.0
    v[-1, -1] = torch.arange(head_dim) - 3.5  # halves, exactly between two int8 steps
    v[-1, -1, 0] = 127.0
    native, plain = (Memory(n_slots, gqa(heads, kv_heads, head_dim), kv_dtype) for _ in range(2))
    kernels.append(native, session.part(0, count), 0, k.flatten(1), v.flatten(1))
    PagedAttention(plain.part, [session.part(0, count)], torch.float32)(
        0, torch.zeros(count, heads, head_dim), k, v
    )
    assert torch.equal(native.pool.data, plain.pool.data)


@pytest.mark.parametrize(
    ("kv_dtype", "bad"),
    [(d, b) for d in KV_DTYPES for b in (float("nan"), float("inf")) if (d, b) != ("float16", float("inf"))],
)
def test_values_that_are_not_finite_stay_so(kernels: Kernels, kv_dtype: str, bad: float) -> None:
    """They must reach the codec, which refuses to send them. (float16 saturates at an infinity.)"""
    (session,), n_slots = shuffled_sessions([(0, 1, 3)])
    for broken in ("k", "v", "q"):
        memory = Memory(n_slots, gqa(1, 1, 16), kv_dtype)
        x = {name: torch.ones(3, 16) for name in "qkv"}
        x[broken][1, 3] = bad
        part = session.part(0, 3)
        kernels.append(memory, part, 0, x["k"], x["v"])
        out = kernels.rows(memory, part, 0, x["q"])
        assert out[0].isfinite().all()
        assert not out[1].isfinite().all()


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 1000.0])
def test_scores_of_any_size(kernels: Kernels, size: float) -> None:
    """From nearly uniform weights to one key that takes all, rising and falling over the pages."""
    torch.manual_seed(0)
    (session,), n_slots = shuffled_sessions([(0, 1, 150)])
    memory = Memory(n_slots, gqa(4, 2, 64), "float32")
    k, v = torch.randn(150, 128), torch.randn(150, 128)
    k *= torch.linspace(0.1, 1.0, 150)[:, None]
    k[40] *= 4
    q = torch.randn(150, 4 * 64) * size
    part = session.part(0, 150)
    kernels.append(memory, part, 0, k, v)
    out = kernels.rows(memory, part, 0, q)
    wanted = softmax_attention(q.view(150, 4, 64), k.view(150, 2, 64), v.view(150, 2, 64), 0)
    # The error of a float32 score grows with it.
    torch.testing.assert_close(out.double(), wanted, atol=3e-6 + 3e-6 * size, rtol=1e-5)


def test_powers_of_two_are_within_their_bound(kernels: Kernels) -> None:
    """With one channel and values 0 and 1, the weights of two tokens show what exp2 gave."""
    (session,), n_slots = shuffled_sessions([(0, 1, 2)])
    memory = Memory(n_slots, gqa(1, 1, 8), "float32")
    scale = torch.tensor(8.0).sqrt().double()
    worst = 0.0
    for x in torch.linspace(-20.0, 0.0, 400).tolist():
        k, v = torch.zeros(2, 8), torch.zeros(2, 8)
        k[0, 0], v[0, 0] = x, 1.0
        q = torch.zeros(2, 8)
        q[1, 0] = float(scale)
        part = session.part(0, 2)
        kernels.append(memory, part, 0, k, v)
        weight = kernels.rows(memory, part, 0, q)[1, 0].double()
        power = torch.tensor(x).double().exp()
        worst = max(worst, float((weight * (1 + power) / power - 1).abs()))
    assert worst < 3e-6  # rounding the exponent of 20 / ln 2 costs more than the polynomial


def test_shared_pages_and_copies(kernels: Kernels) -> None:
    memory = Memory(4, gqa(2, 1, 8), "int8")
    torch.manual_seed(3)
    first = PagedSession(np.array([[2, 0]], np.int32), 0)
    k, v = torch.randn(40, 8), torch.randn(40, 8)
    kernels.append(memory, first.part(0, 40), 0, k, v)
    memory.pool.copy_slots([0], [3])
    second = PagedSession(np.array([[2, 3]], np.int32), 0, 40)
    first.length = 40
    q = torch.randn(1, 16)

    def ask(session: PagedSession) -> Tensor:
        return kernels.rows(memory, BatchSlice(session.table, 0, 0, 39, 1), 0, q)

    before = ask(first)
    assert torch.equal(bits(before), bits(ask(second)))
    kernels.append(memory, BatchSlice(second.table, 0, 0, 36, 4), 0, k, v)
    assert torch.equal(bits(before), bits(ask(first)))
    assert not torch.equal(bits(before), bits(ask(second)))
