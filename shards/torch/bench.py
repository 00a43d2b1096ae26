"""How fast torch multiplies on this CPU beside our kernels. Run as a program, it writes the figures: a
process that computes with ours need not import torch to learn them.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.bench import SIZE, TORCH_WAYS, Product, measure_native, times
from ..layers.quantize import GROUP


def main() -> None:
    """Writes JSON: way → seconds at each of ``bench.ROWS``; with the argument "native" our kernels', too. On
    one thread: a second one that waited for another process would be all that is measured."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        seconds = {way: times(product) for way, product in _products().items()}
    json.dump(seconds | (measure_native() if "native" in sys.argv else {}), sys.stdout)


def _products() -> dict[str, Product]:
    single = torch.randn(SIZE, SIZE)
    half = single.to(torch.bfloat16)
    eight = torch.ones(SIZE, SIZE, dtype=torch.int8)
    scale = torch.ones(SIZE, dtype=torch.bfloat16)
    four = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.ones(SIZE, SIZE, dtype=torch.int32), 1)
    scales = torch.ones(SIZE // GROUP, SIZE, 2, dtype=torch.bfloat16)
    int4 = torch.ops.aten._weight_int4pack_mm_for_cpu

    def bf16(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).bfloat16()

    products: tuple[Product, ...] = (
        lambda x: F.linear(torch.from_numpy(x), single),
        lambda x: F.linear(bf16(x), half),
        lambda x: torch._weight_int8pack_mm(bf16(x), eight, scale),
        lambda x: int4(bf16(x), four, GROUP, scales),
    )
    return dict(zip(TORCH_WAYS, products, strict=True))


if __name__ == "__main__":
    main()
