"""The C attention against softmax written out over what the pool holds, and against itself, bit for bit."""

from __future__ import annotations

import platform
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import swarm_node.shards
from swarm_node.shards.formats.blocks.attention import KvShape
from swarm_node.shards.kernels.library import FLAGS
from swarm_node.shards.layers.kv_pool import KV_DTYPES, BatchSlice
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.runtime.c_build import NativeUnavailableError, load_library
from tests.shards.kernels.attention_cases import (
    Attention,
    Kernels,
    Memory,
    attentions,
    bits,
    gqa,
    latent,
)
from tests.shards.torch.kv_cases import PagedSession, shuffled_sessions, stored

SOURCES = Path(next(iter(swarm_node.shards.__path__))) / "kernels/csrc"
X86 = platform.machine() in ("x86_64", "AMD64")
# Every width of vector that this machine can run; SSE2 is plain C without fused multiply-add.
BUILDS: dict[str, tuple[str, ...]] = {"this CPU": ()}
BUILDS |= {"AVX2": ("-mno-avx512f",), "SSE2": ("-march=x86-64",)} if X86 else {"plain C": ("-DSN_PORTABLE",)}


def built(name: str) -> Kernels:
    sources = [SOURCES / "attention.c", SOURCES / "kv_append.c"]
    try:
        return Kernels(load_library("attention", sources, (*FLAGS, *BUILDS[name])))
    except NativeUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=BUILDS, ids=lambda name: name.replace(" ", "-"))
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return built(request.param)


kv_dtypes = st.sampled_from(KV_DTYPES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attention", [gqa(9, 3, 64), gqa(8, 8, 80), latent(16, 128, 32)], ids=["grouped", "alone", "latent"]
)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_batches_match_plain_softmax(kernels: Kernels, attention: Attention, kv_dtype: str) -> None:
    """Prompts, chunks that begin and end within pages, decode; sessions that hold different blocks."""
    torch.manual_seed(0)
    sessions, n_slots = shuffled_sessions([(3, 2, 200), (1, 4, 200), (2, 3, 200)])
    memory, kv = Memory(n_slots, attention, kv_dtype), attention.kv
    widths = [attention.q_size, kv.heads * kv.key_dim, kv.heads * kv.value_dim]
    for chunks in [[(0, 1)], [(0, 100), (1, 2), (2, 1)], [(0, 1), (1, 90), (2, 1)], [(2, 1), (1, 33)]]:
        row = 0
        total = sum(count for _, count in chunks)
        q, k, v = torch.randn(total, sum(widths)).split(widths, 1)
        for key, count in chunks:
            part = sessions[key].part(row, count)
            rows = slice(row, row + count)
            for block in (3, 4):
                kernels.append(memory, part, block, k, v)
                out = kernels.rows(memory, part, block, q[rows])
                held = stored(memory.part, sessions[key], block, part.start + count)
                wanted = attention.in_float64(q[rows].unflatten(1, (attention.heads, -1)), *held, part.start)
                torch.testing.assert_close(out.double(), wanted, atol=3e-6, rtol=3e-6)
            row += count
            sessions[key].length += count


class Case:
    """``count`` rows of a session after ``start`` others: what they do not see is broken, and of whole pages
    the memory is gone."""

    def __init__(
        self,
        kernels: Kernels,
        attention: Attention,
        kv_dtype: str,
        start: int,
        count: int,
        seed: int,
        layout: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        kv, end = attention.kv, start + count
        self.q = torch.randn(count, attention.q_size) * 2
        self.k, self.v = torch.randn(end, kv.heads * kv.key_dim), torch.randn(end, kv.heads * kv.value_dim)
        unseen = attention.first_seen(start)
        self.k[:unseen], self.v[:unseen] = float("nan"), float("nan")
        (session,), n_slots = shuffled_sessions([(0, 1, end)], seed=layout, spare=layout)
        self.memory = Memory(n_slots, attention, kv_dtype)
        width = max(self.k.shape[1], self.v.shape[1])
        k, v = (torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (self.k, self.v))
        kernels.append(self.memory, BatchSlice(session.table, 0, 0, 0, end), 0, k, v)
        self.table = session.table.copy()
        self.table[:, : unseen // PAGE_TOKENS] = -1
        self.part = BatchSlice(self.table, 0, 0, start, count)
        self.held = stored(self.memory.part, session, 0, end)


@settings(max_examples=80, deadline=None)
@given(attentions(), kv_dtypes, st.integers(0, 150), st.integers(1, 70), st.integers(0, 10**6))
def test_any_settings_match_plain_softmax(
    kernels: Kernels, attention: Attention, kv_dtype: str, start: int, count: int, seed: int
) -> None:
    case = Case(kernels, attention, kv_dtype, start, count, seed)
    out = kernels.rows(case.memory, case.part, 0, case.q)
    wanted = attention.in_float64(case.q.unflatten(1, (attention.heads, -1)), *case.held, start)
    torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(attentions(), kv_dtypes, st.integers(0, 100), st.integers(1, 80), st.integers(0, 10**6))
def test_a_row_does_not_depend_on_the_others(
    kernels: Kernels, attention: Attention, kv_dtype: str, start: int, count: int, seed: int
) -> None:
    """Alone, in any cut of the rows, by heads, on other slots, beside other values: the same bits."""
    case = Case(kernels, attention, kv_dtype, start, count, seed)
    memory, part, q = case.memory, case.part, case.q
    whole = kernels.rows(memory, part, 0, q)
    assert whole.isfinite().all()
    other = Case(kernels, attention, kv_dtype, start, count, seed, layout=1)
    assert torch.equal(bits(whole), bits(kernels.rows(other.memory, other.part, 0, q)))
    for index in range(count):
        alone = kernels.rows(memory, part, 0, q[index : index + 1], first=index)
        assert torch.equal(bits(whole[index]), bits(alone[0]))
    cut = seed % count
    for rows in (slice(0, cut), slice(cut, count)):
        if rows.stop > rows.start:
            some_rows = kernels.rows(memory, part, 0, q[rows], first=rows.start)
            assert torch.equal(bits(some_rows), bits(whole[rows]))
    by_heads = torch.full_like(whole, float("nan"))
    middle = seed % attention.heads
    for some in ((0, middle), (middle, attention.heads)):
        kernels.rows(memory, part, 0, q, heads=some, out=by_heads)
    assert torch.equal(bits(by_heads), bits(whole))
    # What comes after a row, even if it is broken, does not reach it.
    broken = torch.full((1, max(case.k.shape[1], case.v.shape[1])), float("nan"))
    kernels.append(memory, BatchSlice(part.table, 0, 0, start + count - 1, 1), 0, broken, broken)
    assert torch.equal(bits(kernels.rows(memory, part, 0, q)[:-1]), bits(whole[:-1]))


@settings(max_examples=40, deadline=None)
@given(attentions(), kv_dtypes, st.integers(0, 100), st.integers(1, 80), st.integers(0, 10**6))
def test_every_width_of_vector_gives_the_same_bits(
    attention: Attention, kv_dtype: str, start: int, count: int, seed: int
) -> None:
    """Where the CPU has fused multiply-add."""
    wide, narrow = built("this CPU"), built(list(BUILDS)[1])
    results = []
    for kernels in (wide, narrow):
        case = Case(kernels, attention, kv_dtype, start, count, seed)
        results.append(bits(kernels.rows(case.memory, case.part, 0, case.q)))
    assert torch.equal(*results)


@settings(max_examples=60, deadline=None)
@given(attentions(), kv_dtypes, st.integers(0, 70), st.integers(1, 40), st.integers(0, 10**6))
def test_stores_what_torch_stores(
    kernels: Kernels, attention: Attention, kv_dtype: str, start: int, count: int, seed: int
) -> None:
    """The same bytes at the same places, for values of every size, rows of zeros and ties."""
    kv = attention.kv
    torch.manual_seed(seed)
    (session,), n_slots = shuffled_sessions([(0, 1, start + count)], seed)
    session.length = start
    width = kv.heads * max(kv.key_dim, kv.value_dim)
    size = torch.pow(10.0, torch.randint(-12, 7, (2, count, width)).float())
    k, v = (torch.randn(2, count, width) * size).unbind()
    k[0, : kv.key_dim] = 0.0
    v[-1, : kv.value_dim] = torch.arange(kv.value_dim) - 3.5  # halves, exactly between two int8 steps
    v[-1, 0] = 127.0
    native, plain = (Memory(n_slots, attention, kv_dtype) for _ in range(2))
    kernels.append(native, session.part(0, count), 0, k, v)
    positions = torch.arange(start, start + count)
    slots = torch.from_numpy(session.table[0].astype(np.int64))[positions // PAGE_TOKENS]
    k, v = k[:, : kv.heads * kv.key_dim], v[:, : kv.heads * kv.value_dim]
    plain.part.store(
        slots, positions % PAGE_TOKENS, k.unflatten(1, (kv.heads, -1)), v.unflatten(1, (kv.heads, -1))
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


@pytest.mark.parametrize("softcap", [0.0, 30.0])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 1000.0])
def test_scores_of_any_size(kernels: Kernels, size: float, softcap: float) -> None:
    """From nearly uniform weights to one key that takes all, rising and falling over the pages."""
    torch.manual_seed(0)
    (session,), n_slots = shuffled_sessions([(0, 1, 150)])
    attention = replace(gqa(4, 2, 64), softcap=softcap)
    memory = Memory(n_slots, attention, "float32")
    k, v = torch.randn(150, 128), torch.randn(150, 128)
    k *= torch.linspace(0.1, 1.0, 150)[:, None]
    k[40] *= 4
    q = torch.randn(150, 4 * 64) * size
    part = session.part(0, 150)
    kernels.append(memory, part, 0, k, v)
    out = kernels.rows(memory, part, 0, q)
    wanted = attention.in_float64(q.view(150, 4, 64), k.view(150, 2, 64), v.view(150, 2, 64), 0)
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


def test_the_tangent_is_within_its_bound(kernels: Kernels) -> None:
    """With one channel, a softcap of 1 and values 0 and 1, the weights of two tokens show what tanh gave."""
    (session,), n_slots = shuffled_sessions([(0, 1, 2)])
    memory = Memory(n_slots, Attention(1, KvShape(1, 1, 1), 1.0, softcap=1.0), "float32")
    part = session.part(0, 2)
    worst = 0.0
    for x in torch.cat([torch.linspace(-1.0, 1.0, 201), torch.linspace(-20.0, 20.0, 101)]).tolist():
        k, v = torch.tensor([[x], [0.0]]), torch.tensor([[1.0], [0.0]])
        kernels.append(memory, part, 0, k, v)
        weight = kernels.rows(memory, part, 0, torch.ones(2, 1))[1, 0].double()
        tangent = torch.log(weight / (1 - weight))
        worst = max(worst, float((tangent - torch.tensor(x).double().tanh()).abs()))
    assert worst < 1e-6


@pytest.mark.parametrize("sink", [float("-inf"), float("inf"), float("nan")])
def test_a_sink_that_is_not_finite_is_no_accident(kernels: Kernels, sink: float) -> None:
    """Minus infinity is no sink at all; of the others the codec, which refuses what is not finite, hears."""
    case = Case(kernels, replace(gqa(2, 1, 16), sinks=(sink, 0.0)), "float32", 40, 3, 0)
    out = kernels.rows(case.memory, case.part, 0, case.q)
    if sink == float("-inf"):
        plain = case.memory.attention, case.q.unflatten(1, (2, -1)), *case.held
        wanted = replace(plain[0], sinks=()).in_float64(*plain[1:], 40)
        torch.testing.assert_close(out[:, :16].double(), wanted[:, :16], atol=3e-6, rtol=3e-6)
    else:
        assert not out[:, :16].isfinite().any()
    assert out[:, 16:].isfinite().all()


def test_threads_may_share_a_row_of_latent_attention(kernels: Kernels) -> None:
    """Any ranges of the query heads, of which one key has 128."""
    case = Case(kernels, latent(128, 512, 64), "float16", 70, 1, 0)
    whole = kernels.rows(case.memory, case.part, 0, case.q)
    for ranges in (range(0, 129, 16), range(0, 129, 64), [0, 3, 50, 128]):
        shared = torch.full_like(whole, float("nan"))
        for some in pairwise(ranges):
            kernels.rows(case.memory, case.part, 0, case.q, heads=some, out=shared)
        assert torch.equal(bits(whole), bits(shared))


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
