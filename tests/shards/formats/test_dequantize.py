"""Each type against ggml's own package, bit for bit, on bytes of every kind."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from swarm_node.shards.formats.dequantize import _LAYOUTS, dequantize_rows
from swarm_node.shards.formats.qtypes import DENSE, GGUF_QTYPES, row_bytes


@pytest.mark.parametrize("qtype", [qtype for qtype in GGUF_QTYPES if qtype not in DENSE])
@pytest.mark.parametrize(("rows", "cols"), [(300, 512), (1, 256), (0, 768)])
def test_every_type_is_ggmls(qtype: str, rows: int, cols: int) -> None:
    assert _LAYOUTS[qtype].itemsize == gguf.GGML_QUANT_SIZES[_number(qtype)][1]
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
