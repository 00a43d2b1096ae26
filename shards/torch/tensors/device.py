"""torch's types and devices by the names that the rest of the program has for them, and rows on the way in
and out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...formats.raw_tensor import RawTensor
    from ...models.load_plan import LoadPlan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Target:
    """Where blocks compute, in what type, and whether ``rowwise``: a row's bits are then the same whatever
    rows are computed beside it.

    For that, products go in tiles (``linear.RowTiles``). Attention, norms, activations and the choice of
    experts go row by row (``per_row``): vectorised loops and reductions are cut by the size of the whole
    tensor. What is left is single additions and multiplications, which IEEE 754 defines. Bits still depend on
    torch's version, the device, the CPU's instructions and, for wide products, the number of threads.
    """

    device: torch.device
    dtype: torch.dtype
    rowwise: bool = False

    @classmethod
    def of(cls, plan: LoadPlan) -> Target:
        return cls(torch.device(plan.device), DTYPES[plan.dtype], plan.options.deterministic)

    def tensor(self, values: NDArray[np.float32]) -> Tensor:
        """In ``dtype``."""
        return torch.from_numpy(values).to(self.device, self.dtype)

    def per_row(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """``function`` of rows (T, ...), in which each is computed by itself if ``rowwise``."""
        if not self.rowwise:
            return function

        def each(x: Tensor) -> Tensor:
            if len(x) == 1:  # a session that decodes
                return function(x.contiguous())
            return torch.cat([function(row.contiguous()) for row in x.split(1)])

        return each


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
