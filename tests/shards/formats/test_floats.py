"""Floats as buffers, against torch's own types."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from swarm_node.shards.formats.floats import STORED, narrow, widen

SPECIAL = [
    0.0,
    -0.0,
    1.0,
    3.4e38,
    -3.4e38,
    65504.0,
    65519.9,
    65520.0,
    1e-40,
    6e-8,
    2.0**-133,
    np.inf,
    -np.inf,
]


@pytest.mark.parametrize("dtype", STORED)
def test_values_are_rounded_and_widened_as_torch_does(dtype: str) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 20000, dtype=np.uint32)
    ties = np.arange(2**16, dtype=np.uint32) << 16 | 0x8000
    values = np.concatenate([bits.view(np.float32), ties.view(np.float32), np.float32(SPECIAL)])
    values = values[~np.isnan(values)]
    theirs = torch.from_numpy(values.copy()).to(getattr(torch, dtype))
    narrowed = narrow(values, dtype)
    assert narrowed.dtype == STORED[dtype]
    assert torch.equal(torch.from_numpy(narrowed).view(theirs.dtype), theirs)
    assert np.array_equal(widen(narrowed, dtype), theirs.float().numpy())


@pytest.mark.parametrize("dtype", STORED)
def test_what_is_not_a_number_stays_so(dtype: str) -> None:
    bits = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000], np.uint32)
    assert np.isnan(widen(narrow(bits.view(np.float32), dtype), dtype)).all()
