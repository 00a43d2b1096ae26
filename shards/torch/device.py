"""torch's types and devices by the names that the rest of the program has for them, and rows on the way in
and out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..formats.raw_tensor import RawTensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def memory_left(index: int) -> int:
    """Bytes that may still be taken on CUDA device ``index``."""
    return int(torch.cuda.mem_get_info(index)[0])


def tensor_of(raw: RawTensor, dtype: torch.dtype) -> Tensor:
    """The values of ``raw`` in ``dtype``, on the CPU."""
    name = next(name for name, each in DTYPES.items() if each == dtype)
    return torch.from_numpy(raw.dequantize(name)).view(dtype)


def to_array(x: Tensor) -> NDArray[Any]:
    """``x`` of any float type and device as float32: on the CPU without a copy, where it is that already."""
    array: NDArray[Any] = np.ascontiguousarray(x.to("cpu", torch.float32).numpy())
    return array
