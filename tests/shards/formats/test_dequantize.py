"""Each type against ggml and its package, bit for bit, on bytes of every kind."""

from __future__ import annotations

import hashlib

import gguf
import numpy as np
import pytest

from swarm_node.shards.formats import grids
from swarm_node.shards.formats.dequantize import (
    _LAYOUTS,
    INTEGER_QTYPES,
    dequantize_rows,
    has_finite_scales,
    integer_rows,
)
from swarm_node.shards.formats.qtypes import DENSE, GGUF_QTYPES, qtype_of_number, row_bytes
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError

QUANTIZED = [qtype for qtype in GGUF_QTYPES if qtype not in DENSE]
OF_GGML = {
    "Q4_0": "5d954d6745de0b64794159034d3f77dd",
    "Q4_1": "832ce8929552be786d49c6db8493359a",
    "Q5_0": "31fc80df22d62d1711212ab8b3b7aa27",
    "Q5_1": "9804f1b5b89884e58cee7a3ba9f7fdcb",
    "Q8_0": "09792f34d0108b01961fc2808f5cef98",
    "Q2_K": "76c945bf06997eeaa197f848163433c4",
    "Q3_K": "9de6606c2315b4d94ffc919f4e3fcf81",
    "Q4_K": "a3eefbfededcf82cc6c77592c86c5576",
    "Q5_K": "5d42b70205a58e8b7a210d6a848d8e3c",
    "Q6_K": "21344c3971d194f84ca2894f5de1c31d",
    "IQ4_NL": "d2d25ba7735eb98a2f2999e13ea05c50",
    "MXFP4": "26bf5e6ebea89d1407bbcd516626bdd9",
    "IQ4_XS": "ae15d7d6cce3f44f65718663a758f10a",
    "IQ2_XXS": "dc89025439e0471dd24702afe5fc9e4a",
    "IQ2_XS": "961b77d3bf1740a4ec033b0c7e0c3aa1",
    "IQ2_S": "9587ca14dc12bf09f236b1a6dc0d93d5",
    "IQ3_XXS": "39df755fa2213aed6a7ad2a59c9f0433",
    "IQ3_S": "d4515f85d32b5a95dd7f8064fe4d170b",
    "IQ1_S": "7aad579b9db190b6c7d457627e16a6ea",
    "IQ1_M": "b07c7e615387f6671c783fd463bbc6e0",
    "TQ1_0": "5193ef4cec92a17c1d276d2d66cec858",
    "TQ2_0": "350ee56481293bce776d7d314d17f56e",
    "Q1_0": "3bb9324a8d2f75b61a78e76ccee5330e",
    "Q2_0": "5ae7c79f5dca145a462c968f23c557fa",
    "NVFP4": "d7cda53dbb06b1d74f1a70b432dbfc4f",
}
"""Of what the C functions of ggml 0.25.3 (dequantize_row_q4_0 and so on) make of ``blocks``."""


def blocks(qtype: str) -> np.ndarray:
    """64 rows of 512 values, of bytes of every kind."""
    size = row_bytes(qtype, 512)
    return np.frombuffer(hashlib.shake_256(qtype.encode()).digest(64 * size), np.uint8).reshape(64, size)


@pytest.mark.parametrize("qtype", QUANTIZED)
def test_every_type_has_the_values_that_ggml_computes(qtype: str) -> None:
    values = dequantize_rows(blocks(qtype), qtype)
    plain = np.where(np.isnan(values), np.float32(np.nan), values) + np.float32(0)  # one NaN, one zero
    assert hashlib.sha256(plain.tobytes()).hexdigest()[:32] == OF_GGML[qtype]


@pytest.mark.parametrize("qtype", INTEGER_QTYPES)
def test_integers_times_scales_are_the_values(qtype: str) -> None:
    """And no product is rounded."""
    data = blocks(qtype)
    q, scale = integer_rows(data, qtype)
    assert (q.shape, q.dtype, scale.dtype) == ((64, 512), np.int8, np.float32)
    with np.errstate(invalid="ignore"):
        product = q.reshape(*scale.shape, -1) * scale.astype(np.float64)[..., None]
    assert np.array_equal(product.reshape(q.shape), dequantize_rows(data, qtype), equal_nan=True)


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"])
def test_grids_are_those_of_the_package(name: str) -> None:
    theirs = getattr(gguf.quants, name)
    theirs.init_grid()
    ours = grids.IQ1 if name == "IQ1_S" else getattr(grids, name)
    assert np.array_equal(ours, theirs.grid[0, 0])


@pytest.mark.parametrize("number", [4, 9, 15, *range(24, 29), 31, 36])
def test_types_that_are_not_read_are_refused_by_name(number: int) -> None:
    name = {4: "Q4_2", 31: "Q4_0_4_4", 36: "IQ4_NL_4_4"}.get(number) or gguf.GGMLQuantizationType(number).name
    with pytest.raises(
        UnsupportedModelError, match=rf"tensor w has GGUF type {name}, which is not supported"
    ):
        qtype_of_number(number, "w")


def test_every_type_of_the_package_is_read_or_refused_by_name() -> None:
    for kind in gguf.GGMLQuantizationType:
        if kind.name in GGUF_QTYPES:
            assert qtype_of_number(kind.value, "w") == kind.name
            continue
        with pytest.raises(UnsupportedModelError, match=f"type {kind.name},"):
            qtype_of_number(kind.value, "w")


@pytest.mark.parametrize("number", [97, -1, 2**31, 2**63])
def test_numbers_that_no_type_has_are_refused(number: int) -> None:
    with pytest.raises(UnsupportedModelError, match=f"type {number}, which no version of ggml that we know"):
        qtype_of_number(number, "w")


@pytest.mark.parametrize("qtype", QUANTIZED)
def test_rows_that_no_blocks_make_are_refused(qtype: str) -> None:
    _, values = _LAYOUTS[qtype]
    for cols in (1, values - 1, values + 1, values + values // 2):
        with pytest.raises(
            CheckpointError, match=rf"a row of {cols} values cannot be {qtype}, which comes in groups"
        ):
            row_bytes(qtype, cols)


@pytest.mark.parametrize("qtype", [qtype for qtype in QUANTIZED if hasattr(gguf.quants, qtype)])
@pytest.mark.parametrize(("rows", "cols"), [(300, 512), (1, 256), (0, 768)])
def test_every_type_is_ggmls(qtype: str, rows: int, cols: int) -> None:
    layout, values = _LAYOUTS[qtype]
    assert (values, layout.itemsize) == gguf.GGML_QUANT_SIZES[_number(qtype)]
    data = np.random.default_rng(rows + cols).integers(0, 256, (rows, row_bytes(qtype, cols)), np.uint8)
    got = dequantize_rows(data, qtype)
    assert (got.shape, got.dtype) == ((rows, cols), np.float32)
    if rows:
        with np.errstate(invalid="ignore"):
            want = gguf.quants.dequantize(data, _number(qtype))
        assert np.array_equal(got, want, equal_nan=True)


def test_rows_need_not_lie_side_by_side() -> None:
    data = np.random.default_rng(1).integers(0, 256, (8, row_bytes("Q4_K", 512)), np.uint8)
    assert np.array_equal(
        dequantize_rows(data[::2], "Q4_K"), dequantize_rows(data, "Q4_K")[::2], equal_nan=True
    )


def _number(qtype: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[qtype]


@pytest.mark.parametrize("qtype", [qtype for qtype in QUANTIZED if qtype not in ("MXFP4", "IQ1_M")])
def test_scales_that_are_not_finite_are_found_without_the_values(qtype: str) -> None:
    """MXFP4 has exponents, which are checked where they are read, IQ1_M a scale that is cut into pieces."""
    data = blocks(qtype)
    finite = np.isfinite(dequantize_rows(data, qtype)).all(-1)
    assert [has_finite_scales(data[row : row + 1], qtype) for row in range(len(data))] == finite.tolist()
    assert has_finite_scales(data[finite], qtype)
    assert has_finite_scales(data, qtype) == finite.all()
