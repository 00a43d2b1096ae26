"""Integers made from weights: exact where the file has them, within half a step where we round."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from swarm_node.shards.formats.floats import narrow, widen
from swarm_node.shards.formats.raw_tensor import RawTensor
from swarm_node.shards.layers.quantize import (
    GROUP,
    file_groups,
    file_int8_groups,
    q4_k_groups,
    to_int4,
    to_int8,
    to_int8_groups,
)


def weights(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal((rows, cols), np.float32) * random.random((rows, 1), np.float32) * 3


def exact_in(dtype: str, x: np.ndarray) -> bool:
    return np.array_equal(widen(narrow(x, dtype), dtype), x)


def test_int4_is_within_half_a_step_of_every_value() -> None:
    weight = weights(48, 128)
    groups = to_int4(weight)
    assert groups.q.dtype == np.uint8
    assert groups.q.max() <= 15
    error = np.abs(groups.dequantize() - weight).reshape(48, -1, GROUP)
    # Half a step, and what rounding the scale and the centre to bfloat16 moves the ends by.
    largest = np.abs(weight).reshape(48, -1, GROUP).max(-1)
    assert (error.max(-1) <= 0.5 * groups.scale + 2.0**-7 * largest).all()


def test_int4_scales_are_what_the_kernel_holds() -> None:
    groups = to_int4(weights(16, 64))
    centre = groups.minimum + 8 * groups.scale
    assert exact_in("bfloat16", groups.scale)
    assert exact_in("bfloat16", centre)


def test_int8_is_within_half_a_step_and_never_clips() -> None:
    weight = weights(64, 96, seed=1)
    rows = to_int8(weight)
    assert exact_in("bfloat16", rows.scale)
    error = np.abs(rows.dequantize() - weight).max(-1)
    assert (error <= 0.5 * rows.scale * 1.0001).all()
    assert (rows.scale <= np.abs(weight).max(-1) / 127 * 1.02).all()


def test_int8_groups_are_within_half_a_step() -> None:
    weight = weights(64, 96, seed=2)
    groups = to_int8_groups(weight)
    assert exact_in("float16", groups.scale)
    error = np.abs(groups.dequantize() - weight).reshape(64, -1, GROUP)
    # Half a step, and what rounding the scale to float16 moves the largest by.
    assert (error.max(-1) <= groups.scale * (0.5 + 127 * 2.0**-11)).all()
    assert not to_int8_groups(weight * 1e-12).dequantize().any()  # below float16's range
    with pytest.raises(ValueError, match="40 columns"):
        to_int8_groups(np.zeros((4, 40), np.float32))


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType[name] for name in ("Q8_0", "Q5_0")])
def test_int8_groups_of_a_file_are_the_file_exactly(kind: gguf.GGMLQuantizationType) -> None:
    data = quantize(weights(24, 256), kind)
    groups = file_int8_groups(RawTensor("w", (24, 256), kind.name, data))
    assert np.array_equal(groups.dequantize(), dequantize(data, kind))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
def test_constant_rows_come_back(value: float) -> None:
    weight = np.full((2, 64), value, np.float32)
    np.testing.assert_allclose(to_int4(weight).dequantize(), weight, rtol=2.0**-8, atol=1e-30)
    np.testing.assert_allclose(to_int8(weight).dequantize(), weight, rtol=2.0**-7, atol=1e-30)


def test_int4_refuses_a_width_without_groups() -> None:
    with pytest.raises(ValueError, match="40 columns"):
        to_int4(np.zeros((4, 40), np.float32))


@pytest.mark.parametrize("qtype", ["Q4_0", "Q4_1"])
def test_file_groups_are_the_file_exactly(qtype: str) -> None:
    kind = gguf.GGMLQuantizationType[qtype]
    data = quantize(weights(24, 256), kind)
    groups = file_groups(RawTensor("w", (24, 256), qtype, data))
    assert np.array_equal(groups.dequantize(), dequantize(data, kind))


def test_q4_k_groups_are_the_file_exactly() -> None:
    kind = gguf.GGMLQuantizationType.Q4_K
    data = np.random.default_rng(0).integers(0, 256, (6, 3 * 144), dtype=np.uint8)
    blocks = data.reshape(6, 3, 144)
    blocks[..., :4] = np.random.default_rng(1).normal(size=(6, 3, 2)).astype(np.float16).view(np.uint8)
    groups = q4_k_groups(data)
    assert np.array_equal(groups.dequantize(), dequantize(data, kind))
