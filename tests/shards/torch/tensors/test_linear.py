"""Every way to multiply against a plain float32 product with the dequantized weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swarm_node.shards.layers import quantize
from swarm_node.shards.layers.quantize import Int4Groups, Int8Rows
from swarm_node.shards.torch.tensors import linear as linears
from swarm_node.shards.torch.tensors.linear import DenseLinear, Int4Linear, Int8Linear, Scratch, int4_block

ROWS = (1, 3, 16, 17, 40, 41, 70)
SHAPES = ((64, 64), (192, 96), (80, 32), (48, 160), (7, 64), (320, 64))
BF16_STEP = 2.0**-8 * 1.5


def case(out: int, cols: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(out * cols + tokens)
    weight = torch.randn(out, cols, generator=generator) * cols**-0.5
    return weight, torch.randn(tokens, cols, generator=generator), torch.randn(out, generator=generator)


def check(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    assert ((got.double() - want.double()).norm() / want.double().norm()).item() < tolerance


def to_int4(weight: Tensor) -> Int4Groups:
    return quantize.to_int4(weight.numpy())


def to_int8(weight: Tensor) -> Int8Rows:
    return quantize.to_int8(weight.numpy())


def values(held: Int4Groups | Int8Rows) -> Tensor:
    return torch.from_numpy(held.dequantize())


def file_like(weight: Tensor) -> Int4Groups:
    """Groups as a Q4_1 file has them: float16 scales, which bfloat16 cannot hold."""
    groups = to_int4(weight)
    scale, minimum = groups.scale * np.float32(1.0117), groups.minimum * np.float32(0.9871)
    return Int4Groups(groups.q, *(x.astype(np.float16).astype(np.float32) for x in (scale, minimum)))


@pytest.mark.parametrize("tokens", ROWS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_int4(shape: tuple[int, int], tokens: int, with_bias: bool) -> None:
    weight, x, bias = case(*shape, tokens)
    for groups in (to_int4(weight), file_like(weight)):
        product = Int4Linear(groups, bias if with_bias else None, Scratch())
        want = F.linear(x, values(groups), bias if with_bias else None)
        exact = tokens > linears.PACKED_ROWS_INT4 and int4_block() is not None
        check(product(x), want, 1e-6 if exact else BF16_STEP)


@pytest.mark.parametrize("tokens", ROWS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_int8(shape: tuple[int, int], tokens: int, with_bias: bool) -> None:
    weight, x, bias = case(*shape, tokens)
    rows = to_int8(weight)
    product = Int8Linear(rows, bias if with_bias else None, Scratch())
    want = F.linear(x, values(rows), bias if with_bias else None)
    check(product(x), want, 1e-6 if tokens > linears.PACKED_ROWS_INT8 else BF16_STEP)


@pytest.mark.parametrize("tokens", ROWS)
@pytest.mark.parametrize("wide", [None, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dense(dtype: torch.dtype, wide: torch.dtype | None, tokens: int) -> None:
    weight, x, bias = case(192, 96, tokens)
    held = weight.to(dtype)
    product = DenseLinear(held, bias, Scratch(), wide)
    exact = dtype == torch.float32 or (wide is not None and tokens > linears.PACKED_ROWS_INT8)
    check(product(x), F.linear(x, held.float(), bias.to(dtype).float()), 1e-6 if exact else BF16_STEP)


@pytest.mark.parametrize("wide", [torch.bfloat16, torch.float32])
def test_wide_type_of_packed_weights(wide: torch.dtype) -> None:
    weight, x, _ = case(192, 96, 70)
    tolerance = 1e-6 if wide == torch.float32 else BF16_STEP
    check(Int8Linear(to_int8(weight), None, Scratch(), wide)(x), x @ values(to_int8(weight)).t(), tolerance)
    groups = file_like(weight)
    check(Int4Linear(groups, None, Scratch(), wide)(x), x @ values(groups).t(), tolerance)


def test_many_slices_are_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x, bias = case(320, 64, 50)
    monkeypatch.setattr(linears, "SLICE_VALUES", 64 * 64)
    scratch = Scratch()
    groups, rows = file_like(weight), to_int8(weight)
    check(Int4Linear(groups, bias, scratch)(x), F.linear(x, values(groups), bias), BF16_STEP)
    check(Int8Linear(rows, bias, scratch)(x), F.linear(x, values(rows), bias), 1e-6)


def test_without_a_known_layout_the_packed_kernel_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x, _ = case(192, 96, 70)
    groups = to_int4(weight)
    product = Int4Linear(groups, None, Scratch())
    monkeypatch.setattr(linears, "int4_block", lambda: None)
    check(product(x), x @ values(groups).t(), BF16_STEP)


def test_a_product_does_not_depend_on_its_neighbours() -> None:
    """Rows of other sessions in the batch must not change a row: same kernel, same bits."""
    weight, x, _ = case(192, 96, 30)
    for product in (
        Int4Linear(to_int4(weight), None, Scratch()),
        Int8Linear(to_int8(weight), None, Scratch()),
    ):
        assert torch.equal(product(x[:8])[2:5], product(torch.cat((x[20:22], x[2:5], x[25:28])))[2:5])


def test_file_scales_take_float16_and_made_ones_nothing_more() -> None:
    weight, _, _ = case(128, 64, 1)
    made, filed = Int4Linear(to_int4(weight), None, Scratch()), Int4Linear(file_like(weight), None, Scratch())
    assert made.nbytes == 128 * 64 // 2 + 128 * 2 * 2 * 2
    assert filed.nbytes == made.nbytes + 128 * 2 * 2 * 2


def test_widths_that_the_int8_kernel_reads_past_are_refused() -> None:
    with pytest.raises(ValueError, match="72 columns"):
        Int8Linear(to_int8(torch.randn(16, 72)), None, Scratch())


def test_strided_input_is_taken() -> None:
    weight, x, _ = case(64, 64, 6)
    strided = torch.cat((x, x), 1)[:, :64]
    for product in (
        Int4Linear(to_int4(weight), None, Scratch()),
        Int8Linear(to_int8(weight), None, Scratch()),
    ):
        assert torch.equal(product(strided), product(x))
        assert torch.equal(product(strided.bfloat16()), product(x))
