"""The C linears against float64 products with the weights they stand for."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swarm_node.shards.formats.floats import narrow, widen
from swarm_node.shards.formats.qtypes import DENSE, GGUF_QTYPES
from swarm_node.shards.formats.quantized.mxfp4 import mxfp4_tensor
from swarm_node.shards.formats.quantized.tensor import IntegerGroups
from swarm_node.shards.formats.raw_tensor import RawTensor
from swarm_node.shards.formats.tensors import TensorInfo
from swarm_node.shards.kernels import linear as native_linear
from swarm_node.shards.kernels.library import FLAGS
from swarm_node.shards.kernels.linear import (
    ActivationPrecision,
    NativeLinear,
    file_form,
    native_dense,
    native_file,
    native_float8,
    native_int4,
    native_int8,
    native_integers,
    native_stack,
)
from swarm_node.shards.layers.quantize import (
    OWN_FORM,
    Float8Rows,
    Int4Groups,
    Int8Groups,
    file_groups,
    file_int8_groups,
    to_int4,
    to_int8_groups,
)
from swarm_node.swarm.errors import CheckpointError
from swarm_node.swarm.runtime.c_build import NativeUnavailableError, load_library
from tests.shards.gguf_files import raw_values

try:
    native_linear.library()
except NativeUnavailableError as unavailable:
    pytest.skip(str(unavailable), allow_module_level=True)

ENDS = (50, 57)
"""Where the rows of a matrix are cut into parts."""
SHAPES = ((1, 32), (7, 64), (32, 32), (33, 96), (80, 160), (200, 576))
ROWS = (1, 2, 3, 5, 6, 7, 8, 12, 17, 33, 64, 65, 131)
TOLERANCE = {
    ActivationPrecision.EXACT: 1e-6,
    ActivationPrecision.CLOSE: 6e-5,
    ActivationPrecision.FAST: 1.2e-2,
}
"""Relative to the norm of the products; for normal activations, of which the largest in 32 is about 2."""

Make = Callable[[np.ndarray, "np.ndarray | None", ActivationPrecision], tuple[NativeLinear, np.ndarray]]


def q4_1(weight: np.ndarray) -> Int4Groups:
    """Groups as a Q4_1 file has them: float16 scales and minima."""
    groups = to_int4(weight)
    scale, minimum = groups.scale * np.float32(1.0117), groups.minimum * np.float32(0.9871)
    return Int4Groups(groups.q, *(x.astype(np.float16).astype(np.float32) for x in (scale, minimum)))


def q4_0(weight: np.ndarray) -> Int4Groups:
    groups = q4_1(weight)
    return Int4Groups(groups.q, groups.scale, -8 * groups.scale)


def q4_k(weight: np.ndarray) -> Int4Groups:
    """Scales and minima that only float32 holds."""
    groups = to_int4(weight)
    return Int4Groups(groups.q, groups.scale * np.float32(1.000117), groups.minimum * np.float32(0.999871))


def all_bytes(weight: np.ndarray) -> Int8Groups:
    """With -128, which files may have and ``to_int8_groups`` does not make."""
    groups = to_int8_groups(weight)
    q = groups.q.copy()
    q[:, ::7] = -128
    return Int8Groups(q, groups.scale)


def bf16_scales(weight: np.ndarray) -> Int8Groups:
    groups = to_int8_groups(weight)
    return Int8Groups(groups.q, widen(narrow(groups.scale * np.float32(1e-9), "bfloat16"), "bfloat16"))


def halved(weight: np.ndarray) -> Int8Groups:
    """Scales for 16 columns, in float32."""
    groups = all_bytes(weight)
    scale = groups.scale.repeat(2, axis=1)
    scale[:, ::2] *= np.float32(1.337)
    return Int8Groups(groups.q, scale)


def integer(
    build: Callable[..., NativeLinear],
    form: Callable[[np.ndarray], Int4Groups] | Callable[[np.ndarray], Int8Groups],
) -> Make:
    def make(
        weight: np.ndarray, bias: np.ndarray | None, precision: ActivationPrecision
    ) -> tuple[NativeLinear, np.ndarray]:
        groups = form(weight)
        return build([groups], bias, precision), groups.dequantize()

    return make


def shared(
    bits: int, group: int, about: str, scales: str = "float16"
) -> Callable[[np.ndarray], IntegerGroups]:
    """Every integer of ``bits``, and scales for ``group`` columns or, where rows are shorter, all of them.
    ``about``: "zeros" of every value, "middle", or "minima"."""

    def groups(weight: np.ndarray) -> IntegerGroups:
        random = np.random.default_rng(weight.size + bits)
        rows, cols = weight.shape
        each = group if cols % group == 0 else cols
        q = random.integers(0, 1 << bits, weight.shape, np.uint8)
        few = (rows, cols // each)
        scale = held(random.uniform(-1, 1, few) / (cols**0.5 * (1 << bits)), scales)
        if about == "minima":
            return IntegerGroups(q, scale, held(random.uniform(-1, 1, few) / cols**0.5, scales), None)
        zero = random.integers(0, 1 << bits, few).astype(np.int16)
        if about == "middle":
            zero[:] = 1 << bits - 1
        return IntegerGroups(q, scale, -zero.astype(np.float32) * scale, zero)

    return groups


def held(values: np.ndarray, dtype: str) -> np.ndarray:
    return widen(narrow(values.astype(np.float32), dtype), dtype)


def centred(groups: IntegerGroups) -> np.ndarray:
    """The integers less their zero points, int16 (rows, cols)."""
    assert groups.zero is not None
    return groups.q - groups.zero.repeat(groups.q.shape[1] // groups.zero.shape[1], 1)


def integers(bits: int, form: Callable[[np.ndarray], IntegerGroups]) -> Make:
    def make(
        weight: np.ndarray, bias: np.ndarray | None, precision: ActivationPrecision
    ) -> tuple[NativeLinear, np.ndarray]:
        groups = form(weight)
        each = weight.shape[1] // groups.scale.shape[1]
        values = groups.q.astype(np.float32) if groups.zero is None else centred(groups).astype(np.float32)
        values *= groups.scale.repeat(each, 1)
        if groups.zero is None:
            values += groups.minimum.repeat(each, 1)
        return native_integers([groups], bits, bias, precision), values

    return make


def dense(dtype: str) -> Make:
    def make(
        weight: np.ndarray, bias: np.ndarray | None, precision: ActivationPrecision
    ) -> tuple[NativeLinear, np.ndarray]:
        held = narrow(weight, dtype)
        return native_dense([held], bias), widen(held, dtype)

    return make


def to_float8(weight: np.ndarray, group: int) -> Float8Rows:
    """Every float of eight bits that is a number, with scales that make them about as large as ``weight``."""
    random = np.random.default_rng(weight.size)
    q = random.integers(0, 255, weight.shape, np.uint8)
    q[q == 0x7F] = 0x80  # minus zero; 0xff is not drawn
    scale = random.uniform(-1, 1, (len(q), -(-q.shape[1] // group))) / (300 * q.shape[1] ** 0.5)
    return Float8Rows(q, scale.astype(np.float32), group)


def float8(group: int | None) -> Make:
    def make(
        weight: np.ndarray, bias: np.ndarray | None, precision: ActivationPrecision
    ) -> tuple[NativeLinear, np.ndarray]:
        rows = to_float8(weight, group or weight.shape[1])
        return native_float8([rows], bias), rows.dequantize()

    return make


MAKERS: dict[str, Make] = {
    "int4, our own": integer(native_int4, to_int4),
    "Q4_0": integer(native_int4, q4_0),
    "Q4_1": integer(native_int4, q4_1),
    "Q4_K's groups": integer(native_int4, q4_k),
    "int8, our own": integer(native_int8, to_int8_groups),
    "Q8_0": integer(native_int8, all_bytes),
    "int8, bfloat16 scales": integer(native_int8, bf16_scales),
    "int8, scales for 16": integer(native_int8, halved),
    "int4 with zero points for 64": integers(4, shared(4, 64, "zeros")),
    "int4 with zero points of rows": integers(4, shared(4, 4096, "zeros", "float32")),
    "int4 around the middle for 96": integers(4, shared(4, 96, "middle", "bfloat16")),
    "int4 with minima for 64": integers(4, shared(4, 64, "minima")),
    "int8 with zero points for 64": integers(8, shared(8, 64, "zeros", "bfloat16")),
    "int8 around the middle of rows": integers(8, shared(8, 4096, "middle")),
    "int8 with minima for 32": integers(8, shared(8, 32, "minima", "float32")),
    "float32": dense("float32"),
    "float16": dense("float16"),
    "bfloat16": dense("bfloat16"),
    "float8 in groups": float8(64),
    "float8 of rows": float8(None),
}


def case(rows: int, cols: int, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(rows * cols + tokens)
    weight = random.standard_normal((rows, cols), np.float32) * np.float32(cols**-0.5)
    return (
        weight,
        random.standard_normal((tokens, cols), np.float32),
        random.standard_normal(rows, np.float32),
    )


def error(got: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> float:
    want = double(x) @ double(weight).T + (0 if bias is None else double(bias))
    assert got.shape == want.shape
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def rows(tokens: int, cols: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((tokens, cols), np.float32)


def double(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64)


PRODUCTS = [
    (maker, precision)
    for maker in MAKERS
    for precision in ActivationPrecision
    if precision is ActivationPrecision.EXACT or not maker.startswith(("float", "bfloat"))
]
"""Weights that are floats are multiplied in one way only."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("maker", "precision"), PRODUCTS)
def test_products(maker: str, shape: tuple[int, int], precision: ActivationPrecision) -> None:
    weight, x, bias = case(*shape, max(ROWS))
    for held_bias in (None, bias):
        linear, values = MAKERS[maker](weight, held_bias, precision)
        whole = linear(x)
        assert error(whole, x, values, held_bias) < TOLERANCE[precision]
        # A row's bits depend on nothing but the row.
        for tokens in ROWS:
            assert np.array_equal(linear(x[:tokens]), whole[:tokens])
            assert np.array_equal(linear(x[-tokens:]), whole[-tokens:])


@pytest.mark.parametrize("maker", ["Q4_1", "Q4_0", "Q8_0"])
def test_large_channels_do_not_spoil_exact_products(maker: str) -> None:
    """Trained models have channels hundreds of times the rest, and a first token of thousands."""
    weight, x, _ = case(96, 192, 9)
    x[:, 5] *= 1000.0
    x[0] *= 1e4
    linear, values = MAKERS[maker](weight, None, ActivationPrecision.EXACT)
    want = double(x) @ double(values).T
    in_float32 = np.linalg.norm(x @ values.T - want, axis=1)
    assert (np.linalg.norm(linear(x) - want, axis=1) < 4 * in_float32).all()


@pytest.mark.parametrize("precision", ActivationPrecision)
def test_magnitudes(precision: ActivationPrecision) -> None:
    """Groups of the largest value only (every digit at its end), zeros, and values near float32's ends."""
    weight, _, _ = case(40, 64, 1)
    linear, values = MAKERS["Q8_0"](weight, None, precision)
    ones = np.ones((3, 64), np.float32)
    ones[1, ::2] = -1.0
    ones[2, 32:] = 0.0
    for scale in (1.0, 0.3, 1e-20, 1e30, 7.1e5):
        assert (
            error(linear(ones * np.float32(scale)), ones * np.float32(scale), values, None)
            < TOLERANCE[precision]
        )
    assert np.array_equal(linear(np.zeros((2, 64), np.float32)), np.zeros((2, 40)))
    assert np.array_equal(linear(np.full((1, 64), 1e-38, np.float32)), np.zeros((1, 40)))


@pytest.mark.parametrize("maker", ["Q4_1", "Q8_0"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_and_stays_in_its_row(maker: str, value: float) -> None:
    weight, x, _ = case(40, 64, 3)
    linear, _ = MAKERS[maker](weight, None, ActivationPrecision.CLOSE)
    clean = linear(x)
    x[1, 40] = value
    spoiled = linear(x)
    assert np.isnan(spoiled[1]).all()
    assert np.array_equal(spoiled[[0, 2]], clean[[0, 2]])


FILE_BITS = {
    "Q8_0": 8.5,
    "Q6_K": 6.5625,
    "Q5_0": 5.5,
    "Q5_1": 6.0,
    "Q5_K": 5.625,
    "Q4_0": 4.5,
    "Q4_1": 5.0,
    "Q4_K": 4.625,
    "IQ4_NL": 4.5,
    "IQ4_XS": 4.3125,
    "MXFP4": 4.5,
    "Q3_K": 3.5625,
    "Q2_K": 2.625,
}
"""Bits of a weight in memory: six-bit scales take eight, and exponents sixteen."""
INTEGER_BITS = {
    **dict.fromkeys(("IQ1_S", "IQ2_XXS", "IQ3_XXS", "IQ3_S"), 9.0),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q1_0", "Q2_0"), 8.5),
    **dict.fromkeys(("IQ1_M", "IQ2_XS", "IQ2_S"), 10.0),
    "NVFP4": 9.0,
}
"""The same of types that become integers of eight bits: most scales take 32."""


def file_tensor(qtype: str, rows: int, cols: int, shuffled: bool = False) -> RawTensor:
    data = raw_values(np.random.default_rng(rows), (rows, cols), qtype).view(np.uint8)
    return RawTensor("w", (rows, cols), qtype, data, np.arange(rows)[::-1] if shuffled else None)


def test_every_quantized_type_is_held_as_it_is() -> None:
    assert {*FILE_BITS, *INTEGER_BITS} == set(GGUF_QTYPES) - set(DENSE)
    assert all(file_form(qtype) is None and OWN_FORM[qtype] == "int8" for qtype in INTEGER_BITS)
    assert {qtype: file_form(qtype) for qtype in FILE_BITS} == {qtype: OWN_FORM[qtype] for qtype in FILE_BITS}
    assert file_form("MLX4_32") is None


@pytest.mark.parametrize("precision", ActivationPrecision)
@pytest.mark.parametrize("qtype", FILE_BITS)
def test_file_blocks_are_held_exactly(qtype: str, precision: ActivationPrecision) -> None:
    raws = [file_tensor(qtype, 33, 512, shuffled=True), file_tensor(qtype, 31, 512)]
    linear = native_file(raws, None, precision)
    assert linear.nbytes * 8 == FILE_BITS[qtype] * 64 * 512
    weight = np.concatenate([raw.dequantize() for raw in raws])
    # Unit vectors read the weights out; powers of two, which one digit holds but for its 127 steps.
    read = linear(np.eye(512, dtype=np.float32)).T
    np.testing.assert_allclose(read, weight, rtol=3e-6, atol=1e-6 * np.abs(weight).max())
    x = rows(max(ROWS), 512)
    whole = linear(x)
    assert error(whole, x, weight, None) < TOLERANCE[precision]
    for tokens in ROWS:
        assert np.array_equal(linear(x[:tokens]), whole[:tokens])
        assert np.array_equal(linear(x[-tokens:]), whole[-tokens:])


@pytest.mark.parametrize("precision", ActivationPrecision)
@pytest.mark.parametrize("qtype", INTEGER_BITS)
def test_integers_of_files_are_held_exactly(qtype: str, precision: ActivationPrecision) -> None:
    raws = [file_tensor(qtype, 33, 512, shuffled=True), file_tensor(qtype, 31, 512)]
    groups = [file_int8_groups(raw) for raw in raws]
    weight = np.concatenate([raw.dequantize() for raw in raws])
    assert np.array_equal(np.concatenate([each.dequantize() for each in groups]), weight)
    linear = native_int8(groups, None, precision)
    assert linear.nbytes * 8 == INTEGER_BITS[qtype] * 64 * 512
    read = linear(np.eye(512, dtype=np.float32)).T
    np.testing.assert_allclose(read, weight, rtol=3e-6, atol=1e-6 * np.abs(weight).max())
    x = rows(max(ROWS), 512)
    whole = linear(x)
    assert error(whole, x, weight, None) < TOLERANCE[precision]
    for tokens in ROWS:
        assert np.array_equal(linear(x[:tokens]), whole[:tokens])
        assert np.array_equal(linear(x[-tokens:]), whole[-tokens:])


@pytest.mark.parametrize("qtype", [qtype for qtype in FILE_BITS if not qtype.endswith(("_K", "XS"))])
@pytest.mark.parametrize("shape", SHAPES)
def test_odd_shapes_of_files(qtype: str, shape: tuple[int, int]) -> None:
    raw, x = file_tensor(qtype, *shape), rows(9, shape[1])
    linear = native_file([raw], None, ActivationPrecision.EXACT)
    assert error(linear(x), x, raw.dequantize(), None) < TOLERANCE[ActivationPrecision.EXACT]


STACKS = {
    "Q4_K_M's q, k, v": (("Q4_K", 64), ("Q4_K", 32), ("Q6_K", 32)),
    "gate and up": (("Q5_K", 96), ("Q4_K", 96)),
    "odd rows": (("Q3_K", 50), ("IQ4_XS", 7), ("Q2_K", 1), ("Q8_0", 33)),
    "with values": (("BF16", 40), ("Q4_0", 40), ("F32", 9)),
    "values alone": (("F16", 33), ("F32", 33)),
}


@pytest.mark.parametrize("precision", ActivationPrecision)
@pytest.mark.parametrize("name", STACKS)
def test_a_stack_of_types_keeps_each(name: str, precision: ActivationPrecision) -> None:
    raws = [file_tensor(qtype, count, 256, shuffled=count % 2 == 1) for qtype, count in STACKS[name]]
    x = rows(max(ROWS), 256)
    bias = case(sum(raw.shape[0] for raw in raws), 256, 1)[2]
    apart = [native_file([raw], None, precision) for raw in raws]
    for held in (None, bias):
        linear = native_file(raws, held, precision)
        want = np.concatenate([each(x) for each in apart], 1) + (0 if held is None else held)
        assert linear.nbytes == sum(each.nbytes for each in apart)
        assert np.array_equal(linear(x), want)
        assert np.array_equal(native_stack(apart, held)(x), want)
        for tokens in ROWS:
            assert np.array_equal(linear(x[-tokens:]), want[-tokens:])


def test_a_stack_has_at_most_four_kinds() -> None:
    raws = [file_tensor(qtype, 8, 256) for qtype in ("Q4_K", "Q6_K", "Q4_K", "Q6_K", "Q4_K")]
    with pytest.raises(ValueError, match="5 kinds of weights in one linear"):
        native_file(raws, None, ActivationPrecision.CLOSE)
    merged = native_file([*raws[:4], raws[3]], None, ActivationPrecision.CLOSE)
    assert merged(rows(1, 256)).shape == (1, 40)


@pytest.mark.parametrize("exponent", [0, 1, 2, 127, 220])
def test_any_scale_of_mxfp4_is_held_exactly(exponent: int) -> None:
    """Down to those that are no normal numbers."""
    data = np.tile(np.array([exponent, *range(0, 256, 16)], np.uint8), (3, 2))
    raw = RawTensor("w", (3, 64), "MXFP4", data)
    linear = native_file([raw], None, ActivationPrecision.EXACT)
    x = np.float32(2.0 ** (127 - exponent if exponent > 1 else 100)) * np.eye(64, dtype=np.float32)
    np.testing.assert_allclose(linear(x).T, raw.dequantize() * x.max(), rtol=1e-6)


@pytest.mark.parametrize("exponent", [252, 253, 254, 255])
@pytest.mark.parametrize("form", ["gguf", "huggingface"])
def test_exponents_of_mxfp4_beyond_float32_are_refused_in_every_file(form: str, exponent: int) -> None:
    raw = RawTensor("w", (3, 64), "MXFP4", np.full((3, 34), 120, np.uint8))
    raw.stored[2, 17] = exponent
    if form == "huggingface":
        blocks, scales = (RawTensor("w", (3, n), "U8", np.full((3, n), 120, np.uint8)) for n in (32, 2))
        scales.stored[2, 1] = exponent
        raw = mxfp4_tensor(TensorInfo("w", (3, 64), "MXFP4", 102), blocks, scales)
    whole, x = raw.part("w", (3, 64), slice(None)), np.full((1, 64), 1e-4, np.float32)
    ways: list[Callable[[], Any]] = [
        lambda: native_file([whole], None, ActivationPrecision.EXACT)(x),
        raw.dequantize,
        lambda: raw.dequantize_rows([2]),
    ]
    for way in ways:
        if exponent == 252:
            assert np.isfinite(way()).all()
            continue
        with pytest.raises(CheckpointError, match="tensor w has weights that are not finite"):
            way()
    assert np.isfinite(raw.dequantize_rows([0, 1])).all()


@pytest.mark.parametrize("qtype", ["Q4_0", "Q4_1", "Q4_K", "Q8_0"])
def test_file_blocks_and_their_groups_are_the_same_linear(qtype: str) -> None:
    raw = file_tensor(qtype, 40, 256)
    direct = native_file([raw], None, ActivationPrecision.CLOSE)
    grouped = (
        native_int8([file_int8_groups(raw)], None, ActivationPrecision.CLOSE)
        if qtype == "Q8_0"
        else native_int4([file_groups(raw)], None, ActivationPrecision.CLOSE)
    )
    x = rows(5, 256)
    assert np.array_equal(direct(x), grouped(x))


def test_rows_of_a_file_that_do_not_fit_are_refused() -> None:
    q4 = file_tensor("Q4_1", 32, 64)
    with pytest.raises(ValueError, match="differ in columns"):
        native_file([q4, file_tensor("Q4_1", 32, 96)], None, ActivationPrecision.CLOSE)
    with pytest.raises(ValueError, match="not of its columns"):
        native_file([RawTensor("w", (8, 64), "F32", q4.stored)], None, ActivationPrecision.CLOSE)
    wrong = RawTensor("w", (32, 64), "Q4_1", q4.stored, np.full(32, 32))
    with pytest.raises(ValueError, match="row order"):
        native_file([wrong], None, ActivationPrecision.CLOSE)


def test_parts_are_one_matrix() -> None:
    weight, x, bias = case(130, 64, 9)
    for whole, parts in (
        (
            native_int4([q4_1(weight)], bias, ActivationPrecision.CLOSE),
            [q4_1(part) for part in np.split(weight, ENDS)],
        ),
        (
            native_int4([to_int4(weight)], bias, ActivationPrecision.CLOSE),
            [to_int4(part) for part in np.split(weight, ENDS)],
        ),
    ):
        assert np.array_equal(native_int4(parts, bias, ActivationPrecision.CLOSE)(x), whole(x))
    eight = [to_int8_groups(part) for part in np.split(weight, ENDS)]
    assert np.array_equal(
        native_int8(eight, bias, ActivationPrecision.CLOSE)(x),
        native_int8([to_int8_groups(weight)], bias, ActivationPrecision.CLOSE)(x),
    )
    assert np.array_equal(native_dense(np.split(weight, ENDS), bias)(x), native_dense([weight], bias)(x))


@pytest.mark.parametrize(
    ("cols", "groups"), [(300, (300, 128, 96)), (31, (31, 32, 64)), (256, (128, 128, 128))]
)
def test_floats_of_eight_bits_in_unlike_groups_are_one_matrix(cols: int, groups: tuple[int, ...]) -> None:
    """Each part's rows have the bits that they have alone: how many columns share a scale changes none."""
    parts = [
        to_float8(np.empty((size, cols)), group) for size, group in zip((40, 7, 33), groups, strict=True)
    ]
    x = rows(9, cols)
    together = native_float8(parts, None)
    assert np.array_equal(together(x), np.concatenate([native_float8([part], None)(x) for part in parts], 1))
    weight = np.concatenate([part.dequantize() for part in parts])
    assert error(together(x), x, weight, None) < 1e-6
    # Unit vectors read the weights out.
    assert np.array_equal(together(np.eye(cols, dtype=np.float32)).T, weight)


def test_floats_of_eight_bits_take_a_byte_each() -> None:
    every = to_float8(np.empty((64, 256)), 128)
    assert native_float8([every], None).nbytes == 64 * 256 + 4 * 64 * 2
    powers = Float8Rows(every.q, np.full((64, 2), 0.25, np.float32), 128)
    assert native_float8([powers], None).nbytes == 64 * 256 + 2 * 64 * 2


def test_scales_take_two_bytes_where_that_is_exact() -> None:
    weight, _, _ = case(64, 64, 1)
    values, groups = 64 * 64, 64 * 2
    assert native_int4([q4_0(weight)], None, ActivationPrecision.EXACT).nbytes == values // 2 + 2 * groups
    assert native_int4([q4_1(weight)], None, ActivationPrecision.EXACT).nbytes == values // 2 + 4 * groups
    assert native_int4([to_int4(weight)], None, ActivationPrecision.EXACT).nbytes == values // 2 + 4 * groups
    assert native_int4([q4_k(weight)], None, ActivationPrecision.EXACT).nbytes == values // 2 + 8 * groups
    assert (
        native_int8([to_int8_groups(weight)], None, ActivationPrecision.EXACT).nbytes == values + 2 * groups
    )


SHARED_BITS = {
    (4, 128, "zeros"): 4 + 24 / 128,
    (4, 64, "zeros"): 4 + 24 / 64,
    (4, 32, "zeros"): 4 + 24 / 32,
    (4, 128, "middle"): 4 + 16 / 128,
    (4, 64, "minima"): 4 + 32 / 64,
    (8, 128, "zeros"): 8 + 24 / 128,
    (8, 256, "middle"): 8 + 16 / 256,
    (8, 64, "minima"): 8 + 32 / 64,
}
"""Bits of a weight in memory, by bits, columns of a group, and what its integers begin at."""


@pytest.mark.parametrize("precision", ActivationPrecision)
@pytest.mark.parametrize(("bits", "group", "about"), SHARED_BITS)
def test_groups_that_share_a_scale_are_packed_exactly(
    bits: int, group: int, about: str, precision: ActivationPrecision
) -> None:
    weight, x, _ = case(64, 512, max(ROWS))
    parts = [shared(bits, group, about)(weight[:33]), shared(bits, group, about)(weight[33:])]
    linear = native_integers(parts, bits, None, precision)
    assert linear.nbytes * 8 == SHARED_BITS[bits, group, about] * 64 * 512
    # A scale stored once for several groups has the products of one stored for each.
    apart = [
        IntegerGroups(q, *(None if a is None else a.repeat(group // 32, 1) for a in rest))
        for q, *rest in parts
    ]
    assert np.array_equal(linear(x), native_integers(apart, bits, None, precision)(x))
    mixed = native_integers([parts[0], apart[1]], bits, None, precision)
    assert np.array_equal(linear(x), mixed(x))


@pytest.mark.parametrize("precision", ActivationPrecision)
@pytest.mark.parametrize("about", ["zeros", "middle"])
@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_are_taken_off_exactly(bits: int, about: str, precision: ActivationPrecision) -> None:
    """They have the bits of the signed integers that are left, held as eight bits with a scale for 32."""
    weight, x, _ = case(70, 256, max(ROWS))
    groups = shared(bits, 64, about)(weight)
    if about == "zeros" and bits == 8:
        assert groups.zero is not None
        groups.q[:] = np.clip(groups.q, groups.zero.repeat(64, 1) - 128, groups.zero.repeat(64, 1) + 127)
    signed = Int8Groups(centred(groups).astype(np.int8), groups.scale.repeat(2, 1))
    assert np.array_equal(signed.q, centred(groups))
    linear, plain = native_integers([groups], bits, None, precision), native_int8([signed], None, precision)
    for tokens in (1, 2, 7, max(ROWS)):
        assert np.array_equal(linear(x[:tokens]), plain(x[:tokens]))


def test_strided_input_is_taken_and_other_types_are_not() -> None:
    weight, x, _ = case(64, 64, 6)
    linear = native_int4([to_int4(weight)], None, ActivationPrecision.CLOSE)
    assert np.array_equal(linear(np.concatenate((x, x), 1)[:, :64]), linear(x))
    assert np.array_equal(linear(np.asfortranarray(x)), linear(x))
    with pytest.raises(ValueError, match="float16 times"):
        linear(x.astype(np.float16))
    assert linear(x[:0]).shape == (0, 64)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"groups of .40. columns"):
        native_int8(
            [Int8Groups(np.zeros((4, 40), np.int8), np.ones((4, 1), np.float32))],
            None,
            ActivationPrecision.EXACT,
        )
    for group, groups in ((40, 3), (64, 1)):
        wrong = Float8Rows(np.zeros((4, 100), np.uint8), np.ones((4, groups), np.float32), group)
        with pytest.raises(ValueError, match="groups of"):
            native_float8([wrong], None)
    with pytest.raises(ValueError, match="differ"):
        native_dense([np.zeros((4, 32), np.float32), np.zeros((4, 64), np.float32)], None)
    with pytest.raises(ValueError, match="columns"):
        native_dense([np.zeros((4, 32), np.float32)], None)(np.zeros((1, 31), np.float32))


def test_accumulating_and_ranges_of_tiles() -> None:
    """What the span's driver does: part of the outputs, added to what is there."""
    weight, x, bias = case(100, 64, 5)
    for linear in (
        native_int4([q4_1(weight)], bias, ActivationPrecision.CLOSE),
        native_dense([weight], bias),
    ):
        kernels = native_linear.library()
        scratch = np.empty(kernels.sn_linear_scratch(linear.struct, 5) + 1, np.uint8)
        kernels.sn_linear_prepare.argtypes = (*_POINTERS[:4], ctypes.c_void_p)
        kernels.sn_linear_prepare(linear.struct, x.ctypes.data, 64, 5, scratch.ctypes.data)
        out = np.ones((5, 104), np.float32)
        kernels.sn_linear_run.argtypes = (*_POINTERS, *_REST)
        for first, end in ((3, 4), (1, 3)):
            kernels.sn_linear_run(
                *(
                    linear.struct,
                    x.ctypes.data,
                    64,
                    5,
                    out.ctypes.data,
                    104,
                    1,
                    scratch.ctypes.data,
                    first,
                    end,
                )
            )
        assert np.array_equal(out[:, 32:100], linear(x)[:, 32:] + 1.0)
        assert (out[:, :32] == 1.0).all()
        assert (out[:, 100:] == 1.0).all()


_POINTERS = (
    ctypes.POINTER(native_linear.SnLinear),
    *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
)
_REST = (ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)


SOURCES = sorted(Path(native_linear.__file__).parent.glob("csrc/linear*.c"))
X86 = platform.machine() in ("x86_64", "AMD64")
INSTRUCTION_SETS = {
    "plain": ("-DSN_PORTABLE", *(("-march=x86-64",) if X86 else ())),
    "avx2": ("-march=x86-64-v3",),
    "avx-vnni": ("-march=x86-64-v3", "-mavxvnni"),
}


@pytest.fixture(params=INSTRUCTION_SETS)
def other_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same sources for other instruction sets, in the library's place; compiled once a machine."""
    name: str = request.param
    if name != "plain":
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        if {"avx2": "avx2", "avx-vnni": "avx_vnni"}[name] not in flags:
            pytest.skip(f"this CPU has no {name}")
    # Not optimized, which changes no bit: with plain C that alone takes a compiler half a minute.
    kernels = load_library("linear", SOURCES, (*FLAGS, *INSTRUCTION_SETS[name], "-O0"))
    native_linear._kernels.cache_clear()
    monkeypatch.setattr(native_linear, "library", lambda: kernels)
    yield
    native_linear._kernels.cache_clear()


EXPECTED_SHAPE, EXPECTED_ROWS = (70, 96), 13


@pytest.fixture(scope="module")
def expected() -> dict[tuple[str, ActivationPrecision], np.ndarray]:
    """What the library of this machine computes."""
    names = (*MAKERS, *(FILE + qtype for qtype in FILE_BITS))
    return {
        (name, precision): computed(name, precision) for name in names for precision in ActivationPrecision
    }


FILE = "file of "


def computed(name: str, precision: ActivationPrecision) -> np.ndarray:
    if name in MAKERS:
        weight, x, bias = case(*EXPECTED_SHAPE, EXPECTED_ROWS)
        return MAKERS[name](weight, bias, precision)[0](x)
    return native_file([file_tensor(name.removeprefix(FILE), 40, 256)], None, precision)(rows(5, 256))


@pytest.mark.slow
def test_every_instruction_set_gives_the_same_bits(
    expected: dict[tuple[str, ActivationPrecision], np.ndarray], other_kernels: None
) -> None:
    for (name, precision), want in expected.items():
        assert np.array_equal(computed(name, precision), want), (name, precision)
