"""Codecs against the written format, honest error bounds and hostile payloads."""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.swarm.codecs import native
from swarm_node.swarm.codecs.codec import MAX_MAGNITUDE, SMALLEST_MAGNITUDE, Codec
from swarm_node.swarm.codecs.int8 import OUTLIERS
from swarm_node.swarm.codecs.kinds import (
    BF16,
    FP16,
    INT8,
    KINDS,
    NONE,
    codec_named,
    kind_row_bytes,
    negotiate,
    usual_kind,
)
from swarm_node.swarm.errors import ErrorCode, LocalProtocolError, RemoteProtocolError, UsageError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LIMITS = (MAX_MAGNITUDE, 65504.0)
"""What a node can take: most, and one that computes in float16."""


@pytest.fixture(scope="module", params=["plain", "native"], autouse=True)
def _path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test sees both ways of the int8 codec."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            patch.setattr(native, "_codec", None)
        elif not native.warm_up():
            pytest.skip("no C compiler here")
        yield


def activations(tokens: int, hidden: int, seed: int = 0) -> np.ndarray:
    """Like the real ones: a few channels far above the rest, and a first token with massive values."""
    x = np.random.default_rng(seed).standard_normal((tokens, hidden), np.float32)
    x[:, hidden // 2] *= 300
    x[:1, hidden // 3] = 20000.0
    return x


def in_dtype(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The values that a node computes with ``dtype`` has, as float32."""
    return torch.from_numpy(x).to(dtype).float().numpy()


Row = tuple[float, list[int], list[float], bytes]


def written_rows(payload: bytes, tokens: int, hidden: int) -> list[Row]:
    """int8 rows (scale, channels, values, q) parsed with struct, straight from the format's description."""
    k = min(4, hidden)
    row = struct.Struct(f"<f{k}H{k}f{hidden}s")
    assert len(payload) == tokens * row.size
    return [(f[0], list(f[1 : 1 + k]), list(f[1 + k : 1 + 2 * k]), f[-1]) for f in row.iter_unpack(payload)]


def code_of(call: Callable[[], object]) -> ErrorCode:
    with pytest.raises(RemoteProtocolError) as caught:
        call()
    return caught.value.code


ALL = tuple(map(codec_named, KINDS))


shapes = st.tuples(st.integers(1, 70), st.integers(1, 40))


@settings(max_examples=80, deadline=None)
@given(shapes, st.integers(0, 1000), st.sampled_from(DTYPES), st.sampled_from([1e-20, 1.0, 1e3]))
def test_round_trip_error_is_bounded(
    shape: tuple[int, int], seed: int, dtype: torch.dtype, size: float
) -> None:
    exact = in_dtype(np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(size), dtype)
    for codec in ALL:
        payload = codec.encode(exact)
        assert memoryview(payload).nbytes == codec.payload_bytes(*shape)
        back = codec.decode(payload, *shape)
        error = np.abs(back - exact)
        if codec is NONE:
            assert error.max() == 0
        elif codec is INT8:
            ranked = -np.sort(-np.abs(exact), axis=1)  # (tokens, hidden)
            rest = ranked[:, OUTLIERS] if shape[1] > OUTLIERS else np.zeros(shape[0])
            # half a step, and the rounding of float32 arithmetic on the way
            assert (error.max(axis=1) <= rest / 254 * 1.0001 + 1e-30).all()
            assert ((error == 0).sum(axis=1) >= min(OUTLIERS, shape[1])).all()
        else:
            step = 2.0**-8 if codec is BF16 else 2.0**-11
            assert (error <= np.abs(exact) * step + (2.0**-25 if codec is FP16 else 0)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sixteen_bits_are_exact_for_their_own_dtype(dtype: torch.dtype) -> None:
    x = in_dtype(activations(5, 33), dtype)
    codec = {torch.float32: NONE, torch.bfloat16: BF16, torch.float16: FP16}[dtype]
    back = codec.decode(codec.encode(x), 5, 33)
    assert back.dtype == np.float32
    assert np.array_equal(back, x)


@pytest.mark.parametrize(("codec", "dtype"), [(BF16, torch.bfloat16), (FP16, torch.float16)])
def test_sixteen_bits_are_rounded_as_torch_does(codec: Codec, dtype: torch.dtype) -> None:
    """Every upper half of a float32, with lower halves at random, next to a half of a step and at it."""
    upper = np.arange(2**16, dtype=np.uint32) << 16
    lower = np.random.default_rng(3).integers(2**16, size=2**16, dtype=np.uint32)
    for low in (lower, *map(np.uint32, (0, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF))):
        x = (upper | low).view(np.float32)
        rounded = torch.from_numpy(x).clamp(-65504, 65504) if codec is FP16 else torch.from_numpy(x)
        rounded = rounded.to(dtype)
        fine = rounded.isfinite().numpy()
        bits = rounded.view(torch.int16).numpy()
        assert bytes(codec.encode(x[fine][None])) == bits[fine].tobytes()
        for value in x[~fine][::97]:
            with pytest.raises(LocalProtocolError):
                codec.encode(value[None, None])


def test_int8_is_written_as_documented() -> None:
    x = np.array([[1.0, -500.0, 2.0, 0.0, 254.0, -3.0, 600.0, 127.0, -63.5, 700.0]], np.float32)
    ((scale, channels, values, q),) = written_rows(bytes(INT8.encode(x)), 1, 10)
    assert channels == [1, 4, 6, 9]
    assert values == [-500.0, 254.0, 600.0, 700.0]
    assert scale == 1.0  # 127, the largest of the others, over 127
    assert list(struct.unpack("10b", q)) == [1, 0, 2, 0, 0, -3, 0, 127, -64, 0]  # -63.5: half to even


def test_int8_reads_what_another_writer_chose() -> None:
    row = struct.pack("<f4H4f6b", 0.5, 0, 2, 3, 5, 1.0, 2.0, 3.0, 4.0, 99, -128, 99, 99, 7, 99)
    assert INT8.decode(row, 1, 6).tolist() == [[1.0, -64.0, 2.0, 3.0, 3.5, 4.0]]


@pytest.mark.parametrize(
    ("codec", "row"),
    [
        (NONE, struct.pack("<3f", 1.5, -2.0, 0.0)),
        (FP16, struct.pack("<3e", 1.5, -2.0, 0.0)),
        (BF16, bytes.fromhex("c03f00c00000")),
    ],
)
def test_other_codecs_are_written_as_documented(codec: Codec, row: bytes) -> None:
    x = np.array([[1.5, -2.0, 0.0]], np.float32)
    assert bytes(codec.encode(x)) == row
    assert codec.decode(row, 1, 3).tolist() == x.tolist()


@pytest.mark.parametrize("codec", ALL)
def test_rows_stand_alone(codec: Codec) -> None:
    """Joined payloads are the payload of all tokens, so a journal may be cut and joined at any row."""
    x = activations(150, 24)  # more rows than are encoded together
    whole = bytes(codec.encode(x))
    assert b"".join(bytes(codec.encode(row[None])) for row in x) == whole
    cut = codec.payload_bytes(70, 24)
    assert np.array_equal(codec.decode(whole[:cut], 70, 24), codec.decode(whole, 150, 24)[:70])


@pytest.mark.parametrize("codec", ALL)
def test_encoding_again_changes_nothing_that_matters(codec: Codec) -> None:
    """A hop that passes activations through decodes and encodes them once more."""
    once = codec.decode(codec.encode(activations(9, 64)), 9, 64)
    twice = codec.decode(codec.encode(once), 9, 64)
    np.testing.assert_allclose(twice, once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("codec", ALL)
def test_views_and_odd_layouts(codec: Codec) -> None:
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
        assert bytes(codec.encode(view)) == bytes(codec.encode(view.copy()))


@pytest.mark.parametrize("codec", ALL)
def test_memory_is_never_shared(codec: Codec) -> None:
    x = activations(2, 8)
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


@pytest.mark.parametrize("codec", ALL)
def test_nothing_but_zeros_and_nothing_at_all(codec: Codec) -> None:
    assert codec.decode(codec.encode(np.zeros((3, 9), np.float32)), 3, 9).tolist() == [[0.0] * 9] * 3
    assert codec.decode(codec.encode(np.empty((0, 9), np.float32)), 0, 9).shape == (0, 9)


def test_fp16_saturates() -> None:
    x = np.array([[70000.0, -1e9, 1.0]], np.float32)
    assert FP16.decode(FP16.encode(x), 1, 3).tolist() == [[65504.0, -65504.0, 1.0]]


def test_bytes_per_value_of_the_default() -> None:
    assert INT8.payload_bytes(1000, 576) / (1000 * 576) <= 1.06
    assert INT8.payload_bytes(1, 8192) / 8192 < 1.004


@pytest.mark.parametrize("codec", ALL)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("count", [1, 6])
def test_our_own_broken_values_are_never_sent(codec: Codec, bad: float, count: int) -> None:
    x = activations(3, 16)
    x[1, 2 : 2 + count] = bad
    if codec is FP16 and bad == bad:
        assert np.abs(codec.decode(codec.encode(x), 3, 16)).max() == 65504  # saturated like any other
        return
    with pytest.raises(LocalProtocolError, match="not finite"):
        codec.encode(x)


@pytest.mark.parametrize("codec", ALL)
@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_size(codec: Codec, change: int) -> None:
    payload = bytes(codec.encode(activations(2, 8)))
    payload = payload[:-1] if change < 0 else payload + b"\0"
    assert code_of(lambda: codec.decode(payload, 2, 8)) is ErrorCode.BAD_TENSOR
    assert code_of(lambda: codec.decode(b"", 2, 8)) is ErrorCode.BAD_TENSOR
    assert code_of(lambda: codec.decode(payload, 0, 8)) is ErrorCode.BAD_TENSOR


@pytest.mark.parametrize(
    ("codec", "form", "bad"),
    [(c, f, b) for c, f in ((NONE, "<f"), (FP16, "<e")) for b in (math.nan, math.inf, -math.inf)]
    + [(BF16, "<H", bits) for bits in (0x7F80, 0xFF80, 0x7FC1, 0xFFFF)],
)
def test_values_that_are_not_finite(codec: Codec, form: str, bad: float) -> None:
    payload = bytearray(codec.encode(np.ones((2, 8), np.float32)))
    payload[-struct.calcsize(form) :] = struct.pack(form, bad)
    for limit in LIMITS:
        assert code_of(lambda most=limit: codec.decode(payload, 2, 8, most)) is ErrorCode.BAD_TENSOR


def int8_row(scale: float, channels: list[int], values: list[float], q: int = 1) -> bytes:
    return struct.pack("<f4H4f8b", scale, *channels, *values, *[q] * 8)


@pytest.mark.parametrize(
    "row",
    [
        int8_row(float("nan"), [0, 1, 2, 3], [1.0] * 4),
        int8_row(float("inf"), [0, 1, 2, 3], [1.0] * 4),
        int8_row(-1.0, [0, 1, 2, 3], [1.0] * 4),
        int8_row(3e38, [0, 1, 2, 3], [1.0] * 4),  # finite, but not times 128
        int8_row(1.0, [0, 1, 2, 3], [1.0, float("nan"), 1.0, 1.0]),
        int8_row(1.0, [0, 1, 2, 3], [1.0, 1.0, 1.0, float("-inf")]),
        int8_row(1.0, [0, 1, 2, 8], [1.0] * 4),  # out of range
        int8_row(1.0, [0, 1, 2, 65535], [1.0] * 4),
        int8_row(1.0, [0, 1, 1, 3], [1.0] * 4),  # twice
        int8_row(1.0, [3, 2, 1, 0], [1.0] * 4),  # out of order
        int8_row(1.0, [8, 1, 2, 3], [1.0] * 4),
    ],
)
def test_hostile_int8_rows(row: bytes) -> None:
    good = int8_row(1.0, [0, 1, 2, 3], [1.0] * 4)
    INT8.decode(good * 3, 3, 8)
    for payload in (row, good + row + good):
        tokens = len(payload) // len(row)
        assert code_of(lambda p=payload, t=tokens: INT8.decode(p, t, 8)) is ErrorCode.BAD_TENSOR


@pytest.mark.parametrize("codec", [NONE, BF16, INT8])
def test_values_too_large_for_a_float16_node(codec: Codec) -> None:
    payload = codec.encode(np.full((1, 8), 70000.0, np.float32))
    assert np.isfinite(codec.decode(payload, 1, 8)).all()
    assert code_of(lambda: codec.decode(payload, 1, 8, 65504.0)) is ErrorCode.BAD_TENSOR


@pytest.mark.parametrize("codec", [NONE, BF16, INT8])
def test_values_that_no_model_computes(codec: Codec) -> None:
    largest = np.full((2, 8), MAX_MAGNITUDE * (127 / 128 if codec is INT8 else 1), np.float32)
    assert np.isfinite(np.square(codec.decode(codec.encode(largest), 2, 8)).sum(axis=1)).all()
    for bad in (2 * MAX_MAGNITUDE, -2 * MAX_MAGNITUDE, 3e38):
        rows = np.ones((2, 8), np.float32)
        rows[1, 5] = bad
        for limit in LIMITS:
            payload = codec.encode(rows)
            assert code_of(lambda p=payload, most=limit: codec.decode(p, 2, 8, most)) is ErrorCode.BAD_TENSOR


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(ALL), st.integers(1, 4), st.integers(1, 9), st.sampled_from(LIMITS))
def test_any_bytes_give_finite_values_or_one_error(
    data: st.DataObject, codec: Codec, tokens: int, hidden: int, limit: float
) -> None:
    size = codec.payload_bytes(tokens, hidden)
    payload = data.draw(st.binary(min_size=size, max_size=size))
    try:
        rows = codec.decode(payload, tokens, hidden, limit)
    except RemoteProtocolError as refused:
        code: ErrorCode | None = refused.code
        rows = np.zeros((tokens, hidden), np.float32)
    else:
        code = None
    assert code in (None, ErrorCode.BAD_TENSOR)
    assert rows.shape == (tokens, hidden)
    assert rows.dtype == np.float32
    assert np.abs(rows).max() <= limit


def test_callers_mistakes() -> None:
    for call in (
        lambda: kind_row_bytes("zip", 4),
        lambda: NONE.encode(np.ones(4, np.float32)),
        lambda: NONE.encode(np.ones((1, 4), np.int64)),
        lambda: NONE.encode(np.ones((1, 4), ">f4")),
        lambda: INT8.payload_bytes(1, 70000),
        lambda: INT8.payload_bytes(-1, 4),
        lambda: NONE.payload_bytes(1, 0),
    ):
        with pytest.raises(UsageError):
            call()


def test_negotiation_never_loses_precision_in_silence() -> None:
    assert negotiate(KINDS, KINDS, "int8").name == "int8"
    assert negotiate(KINDS, ("none", "fp16"), "int8").name == "none"  # fp16 cannot hold every model
    assert negotiate(KINDS, ("none", "int8"), "bf16").name == "none"
    assert negotiate(("none", "int8"), ("future", "none", "fp16"), "int8").name == "none"
    for theirs in ((), ("int8",), ("future",)):
        assert code_of(lambda t=theirs: negotiate(KINDS, t, "fp16")) is ErrorCode.UNSUPPORTED_CODEC
    with pytest.raises(UsageError):
        negotiate(KINDS, KINDS, "zip")


def test_one_decode_row_is_quick() -> None:
    """About 0.04 ms on one core; the bound leaves room for a busy machine."""
    x = activations(1, 576)
    best = float("inf")
    for _ in range(200):
        begun = time.perf_counter()
        INT8.decode(INT8.encode(x), 1, 576)
        best = min(best, time.perf_counter() - begun)
    assert best < 0.5e-3


def test_structure_survives_numpy_dtype_padding() -> None:
    """An odd width leaves rows unaligned; nothing may be padded."""
    x = activations(3, 13)
    payload = bytes(INT8.encode(x))
    assert len(payload) == 3 * (4 + 6 * 4 + 13)
    for row, (scale, channels, values, q) in zip(x, written_rows(payload, 3, 13), strict=True):
        back = np.frombuffer(q, np.int8).astype(np.float32) * np.float32(scale)
        back[channels] = values
        np.testing.assert_allclose(back, row, atol=scale * 0.5001)


def test_a_family_without_measurements_travels_in_16_bits() -> None:
    assert usual_kind("llama") == "int8"
    assert usual_kind("gemma3_text") == usual_kind("") == "bf16"


@pytest.mark.parametrize("codec", ALL)
@pytest.mark.parametrize("tokens", [0, 1, 3])
@pytest.mark.parametrize("hidden", [2, 64, 576])
def test_magnitudes_of_rows_without_decoding_them(codec: Codec, tokens: int, hidden: int) -> None:
    rows = np.random.default_rng(1).standard_normal((tokens, hidden), np.float32) * np.float32(3)
    rows[1:, 0] = 1000.0
    rows[2:] = 0.0
    found = codec.magnitudes(codec.encode(rows), tokens, hidden)
    true = np.sqrt(np.square(rows).mean(axis=1)).tolist()
    assert len(found) == tokens
    for magnitude, rms in zip(found, true, strict=True):
        assert rms * 0.99 <= magnitude <= rms * (6 if codec is INT8 else 1.01) + SMALLEST_MAGNITUDE


def test_magnitudes_of_what_is_not_finite_are_not() -> None:
    for bad in (math.nan, math.inf):
        (magnitude,) = NONE.magnitudes(struct.pack("<8f", *[bad] * 8), 1, 8)
        assert not math.isfinite(magnitude)
        for row in (int8_row(bad, [0, 1, 2, 3], [1.0] * 4), int8_row(1.0, [0, 1, 2, 3], [bad] * 4)):
            for count in (1, 2):
                assert not math.isfinite(INT8.magnitudes(row * count, count, 8)[-1])
