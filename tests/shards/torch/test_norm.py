from __future__ import annotations

import pytest
import torch

from swarm_node.shards.torch.norm import RmsNorm


@pytest.mark.parametrize("size", [1e-6, 1.0, 3e4])
@pytest.mark.parametrize("rows", [1, 5])
def test_against_float64(size: float, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, 40, generator=generator) * size, torch.randn(40, generator=generator)
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(RmsNorm(weight, 1e-5)(x).double(), exact, rtol=2e-6, atol=1e-9)


def test_zeros_and_low_precision() -> None:
    norm = RmsNorm(torch.ones(8, dtype=torch.bfloat16), 1e-5)
    assert torch.equal(RmsNorm(torch.ones(8), 1e-5)(torch.zeros(2, 8)), torch.zeros(2, 8))
    out = norm(torch.full((2, 8), 3.0, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, torch.ones(2, 8, dtype=torch.bfloat16))
