from __future__ import annotations

import pytest
import torch

from swarm_node.shards.formats.blocks.norm import NORMS, NormConfig
from swarm_node.shards.torch.tensors.norm import RmsNorm, norm_of


@pytest.mark.parametrize("size", [1e-6, 1.0, 3e4])
@pytest.mark.parametrize("rows", [1, 5])
def test_against_float64(size: float, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, 40, generator=generator) * size, torch.randn(40, generator=generator)
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(RmsNorm(weight, 1e-5)(x).double(), exact, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("heads", [(), (3,)])
def test_of_rows_and_of_heads(kind: str, dtype: torch.dtype, biased: bool, heads: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(4, 3, 24, generator=generator) * 5 + 2).to(dtype)
    weight, bias = torch.randn(2, *heads, 24, generator=generator).to(dtype)
    exact = x.double()
    if kind == "layer":
        exact = exact - exact.mean(-1, keepdim=True)
    exact = exact / (exact.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    exact = exact + bias.double() if biased else exact
    got = norm_of(NormConfig(1e-5, kind), weight, bias if biased else None)(x)
    assert got.dtype == dtype
    tolerance = 4e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=tolerance)


def test_zeros_and_low_precision() -> None:
    norm = RmsNorm(torch.ones(8, dtype=torch.bfloat16), 1e-5)
    assert torch.equal(RmsNorm(torch.ones(8), 1e-5)(torch.zeros(2, 8)), torch.zeros(2, 8))
    out = norm(torch.full((2, 8), 3.0, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, torch.ones(2, 8, dtype=torch.bfloat16))
