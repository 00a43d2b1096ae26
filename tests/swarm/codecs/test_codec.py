"""What holds of every codec: honest error bounds, rows that stand alone, hostile payloads."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.swarm.codecs.codec import MAX_MAGNITUDE, SMALLEST_MAGNITUDE
from swarm_node.swarm.codecs.kinds import NONE
from swarm_node.swarm.codecs.names import KINDS
from swarm_node.swarm.codecs.packed import OUTLIERS
from swarm_node.swarm.codecs.scales import powers_of_two
from swarm_node.swarm.errors import ErrorCode, LocalProtocolError, RemoteProtocolError, UsageError
from tests.swarm.codecs import codec_cases
from tests.swarm.codecs.codec_cases import activations

pytestmark = pytest.mark.usefixtures("both_paths")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
codec_of = partial(codec_cases.codec_of, most=8)
LIMITS = (MAX_MAGNITUDE, 65504.0)
"""What a node can take: most, and one that computes in float16."""
WIDE = tuple(kind for kind in KINDS if kind != "fp16")
"""Those that hold what fp16 does not."""


def in_dtype(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The values that a node computes with ``dtype`` has, as float32."""
    return torch.from_numpy(x).to(dtype).float().numpy()


def rest_of(x: np.ndarray) -> np.ndarray:
    """(tokens, 1): the largest magnitude beside the outliers."""
    ranked = -np.sort(-np.abs(x), axis=1)
    return ranked[:, OUTLIERS : OUTLIERS + 1] if x.shape[1] > OUTLIERS else np.zeros((len(x), 1))


shapes = st.tuples(st.integers(1, 70), st.integers(1, 40))


@settings(max_examples=80, deadline=None)
@given(shapes, st.integers(0, 1000), st.sampled_from(DTYPES), st.sampled_from([1e-20, 1.0, 1e3]))
def test_round_trip_error_is_bounded(
    shape: tuple[int, int], seed: int, dtype: torch.dtype, size: float
) -> None:
    exact = in_dtype(np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(size), dtype)
    for kind in KINDS:
        codec = codec_of(kind, shape[1], seed)
        payload = codec.encode(exact)
        assert memoryview(payload).nbytes == codec.payload_bytes(*shape)
        back = codec.decode(payload, *shape)
        error = np.abs(back - exact)
        if kind == "none":
            assert error.max() == 0
        elif kind in ("bf16", "fp16"):
            step = 2.0**-8 if kind == "bf16" else 2.0**-11
            assert (error <= np.abs(exact) * step + (2.0**-25 if kind == "fp16" else 0)).all()
        else:
            powers = powers_of_two(codec.exponents) if codec.exponents else np.ones(shape[1])
            rest = rest_of(exact / powers)
            bound = rest / 254 * powers  # half a step
            if kind == "f8":  # or one of 16 steps to the next power of two
                bound = np.maximum(rest / 1984 / 2, np.abs(exact) / 33)
            # and the rounding of float32 arithmetic on the way
            assert (error <= bound * 1.0001 + 1e-30 * powers).all()
            assert ((error == 0).sum(axis=1) >= min(OUTLIERS, shape[1])).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_stand_alone(kind: str) -> None:
    """Joined payloads are the payload of all tokens, so a journal may be cut and joined at any row."""
    codec = codec_of(kind, 24)
    x = activations(150, 24)  # more rows than are encoded together
    whole = bytes(codec.encode(x))
    assert b"".join(bytes(codec.encode(row[None])) for row in x) == whole
    cut = codec.payload_bytes(70, 24)
    assert np.array_equal(codec.decode(whole[:cut], 70, 24), codec.decode(whole, 150, 24)[:70])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 40),
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_joined_and_cut_anywhere(kind: str, width: int, steps: list[int], seed: int) -> None:
    codec, total = codec_of(kind, width, seed), sum(steps)
    x = np.random.default_rng(seed).standard_normal((total, width), np.float32) * np.float32(50)
    ends = np.cumsum(steps)
    parts = [bytes(codec.encode(x[end - count : end])) for count, end in zip(steps, ends, strict=True)]
    whole = b"".join(parts)
    assert whole == bytes(codec.encode(x))
    rows, size = codec.decode(whole, total, width), codec.row_bytes(width)
    for count, end in zip(steps, ends, strict=True):
        piece = memoryview(whole)[(end - count) * size : end * size]
        assert np.array_equal(codec.decode(piece, count, width), rows[end - count : end])


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_again_changes_nothing_that_matters(kind: str) -> None:
    """A hop that passes activations through decodes and encodes them once more."""
    codec = codec_of(kind, 64)
    once = codec.decode(codec.encode(activations(9, 64)), 9, 64)
    twice = codec.decode(codec.encode(once), 9, 64)
    np.testing.assert_allclose(twice, once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_views_and_odd_layouts(kind: str) -> None:
    x = activations(24, 12)
    x.setflags(write=False)
    for view in (
        x,
        x.T,
        x[::2],
        x[::-1],
        x[:, 3:8],
        x[5:6],
        x[:, ::3],
        x[:, ::-1],
        np.broadcast_to(x[0], (3, 12)),
    ):
        codec = codec_of(kind, view.shape[1])
        assert bytes(codec.encode(view)) == bytes(codec.encode(view.copy()))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_never_shared(kind: str) -> None:
    codec, x = codec_of(kind, 8), activations(2, 8)
    payload = codec.encode(x)
    before = bytes(payload)
    x[:] = 0
    assert bytes(payload) == before
    received = bytearray(before)
    rows = codec.decode(received, 2, 8)
    kept = rows.copy()
    received[:] = bytes(len(received))
    assert np.array_equal(rows, kept)
    rows[:] = 0  # and it may be written to


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_zeros_and_nothing_at_all(kind: str) -> None:
    codec = codec_of(kind, 9)
    assert codec.decode(codec.encode(np.zeros((3, 9), np.float32)), 3, 9).tolist() == [[0.0] * 9] * 3
    assert codec.decode(codec.encode(np.empty((0, 9), np.float32)), 0, 9).shape == (0, 9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("count", [1, 6])
def test_our_own_broken_values_are_never_sent(kind: str, bad: float, count: int) -> None:
    x = activations(3, 16)
    x[1, 2 : 2 + count] = bad
    with pytest.raises(LocalProtocolError, match="not finite"):
        codec_of(kind, 16).encode(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_size(kind: str, change: int) -> None:
    codec = codec_of(kind, 8)
    payload = bytes(codec.encode(activations(2, 8)))
    payload = payload[:-1] if change < 0 else payload + b"\0"
    for bad, tokens in ((payload, 2), (b"", 2), (payload, 0)):
        with pytest.raises(RemoteProtocolError, match=f"codec {codec.name}, not {len(bad)}") as caught:
            codec.decode(bad, tokens, 8)
        assert caught.value.code is ErrorCode.BAD_TENSOR


@pytest.mark.parametrize("kind", WIDE)
def test_values_too_large_for_a_float16_node(kind: str) -> None:
    codec = codec_of(kind, 8)
    payload = codec.encode(np.full((1, 8), 70000.0, np.float32))
    assert np.isfinite(codec.decode(payload, 1, 8)).all()
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(payload, 1, 8, 65504.0)
    assert caught.value.code is ErrorCode.BAD_TENSOR


@pytest.mark.parametrize("kind", WIDE)
def test_values_that_no_model_computes(kind: str) -> None:
    codec = codec_of(kind, 8)
    largest = np.full((2, 8), MAX_MAGNITUDE * (127 / 128 if kind.startswith("int8") else 1), np.float32)
    assert np.isfinite(np.square(codec.decode(codec.encode(largest), 2, 8)).sum(axis=1)).all()
    for bad in (2 * MAX_MAGNITUDE, -2 * MAX_MAGNITUDE, 3e38):
        rows = np.ones((2, 8), np.float32)
        rows[1, 5] = bad
        for limit in LIMITS:
            payload = codec.encode(rows)
            with pytest.raises(RemoteProtocolError) as caught:
                codec.decode(payload, 2, 8, limit)
            assert caught.value.code is ErrorCode.BAD_TENSOR


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from(KINDS), st.integers(1, 4), st.integers(1, 9), st.sampled_from(LIMITS))
def test_any_bytes_give_finite_values_or_one_error(
    data: st.DataObject, kind: str, tokens: int, width: int, limit: float
) -> None:
    codec = codec_of(kind, width, seed=tokens)
    size = codec.payload_bytes(tokens, width)
    payload = data.draw(st.binary(min_size=size, max_size=size))
    try:
        rows = codec.decode(payload, tokens, width, limit)
    except RemoteProtocolError as refused:
        code: ErrorCode | None = refused.code
        rows = np.zeros((tokens, width), np.float32)
    else:
        code = None
    assert code in (None, ErrorCode.BAD_TENSOR)
    assert rows.shape == (tokens, width)
    assert rows.dtype == np.float32
    assert np.abs(rows).max() <= limit


@pytest.mark.parametrize("kind", KINDS)
def test_callers_mistakes(kind: str) -> None:
    codec = codec_of(kind, 4)
    for call in (
        lambda: codec.encode(np.ones(4, np.float32)),
        lambda: codec.encode(np.ones((1, 4), np.int64)),
        lambda: codec.encode(np.ones((1, 4), ">f4")),
        lambda: codec.row_bytes(70000),
        lambda: codec.row_bytes(0),
        lambda: codec.payload_bytes(-1, 4),
    ):
        with pytest.raises(UsageError):
            call()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [0, 1, 3])
@pytest.mark.parametrize("width", [2, 64, 576])
def test_magnitudes_of_rows_without_decoding_them(kind: str, tokens: int, width: int) -> None:
    """The channels of a boundary with scales are about as large as these say."""
    codec = codec_of(kind, width)
    rows = np.random.default_rng(1).standard_normal((tokens, width), np.float32) * np.float32(3)
    rows[1:, 0] = 1000.0
    rows[2:] = 0.0
    if codec.exponents:
        rows *= powers_of_two(codec.exponents)
    found = codec.magnitudes(codec.encode(rows), tokens, width)
    true = np.sqrt(np.square(rows).mean(axis=1)).tolist()
    assert len(found) == tokens
    for magnitude, rms in zip(found, true, strict=True):
        most = rms * (6 if kind in ("int8", "f8") else 1.01)
        assert rms * 0.99 <= magnitude <= most + SMALLEST_MAGNITUDE


def test_magnitudes_of_what_is_not_finite_are_not() -> None:
    for bad in (float("nan"), float("inf")):
        row = np.full(8, bad, np.float32).tobytes()
        assert not np.isfinite(NONE.magnitudes(row, 1, 8)).any()
        for kind in ("int8", "f8", "int8s"):
            codec = codec_of(kind, 8)
            for at in (0, 4 + 2 * OUTLIERS):  # the scale, the first outlier
                payload = bytearray(codec.encode(np.ones((1, 8), np.float32)))
                payload[at : at + 4] = np.float32(bad).tobytes()
                for count in (1, 2):
                    assert not np.isfinite(codec.magnitudes(bytes(payload) * count, count, 8)[-1])
