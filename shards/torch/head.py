"""The output head on torch's kernels: for other devices, other types than float32, and machines without a C
compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .tensors.device import DTYPES, to_array

if TYPE_CHECKING:
    from ..models.head import FinalNorm
    from .tensors.device import Target
    from .tensors.linear import Linear


class TorchProduct:
    """``linear`` of rows from and to the host: x (T, in) float32 → (T, out) float32."""

    def __init__(self, linear: Linear, target: Target) -> None:
        self._linear, self._target = linear, target

    @torch.inference_mode()
    def __call__(self, x: np.ndarray) -> np.ndarray:
        return to_array(self._linear(self._target.tensor(x)))


class TorchHead:
    """``norm`` and ``linear`` are all there is to it. ``device``, ``dtype``: of the linear, by name."""

    def __init__(self, norm: FinalNorm, linear: Linear, device: str, dtype: str, threads: int) -> None:
        """``threads`` of torch on the CPU, in the whole process."""
        torch.set_num_threads(threads)
        self._norm = norm
        self._linear = linear
        self._names, self._threads = (device, dtype), threads
        self._device, self._dtype = torch.device(device), DTYPES[dtype]

    def with_norm(self, norm: FinalNorm) -> TorchHead:
        """The same weights behind another norm."""
        return TorchHead(norm, self._linear, *self._names, self._threads)

    @torch.inference_mode()
    def __call__(self, x: np.ndarray) -> np.ndarray:
        """``x`` (T, hidden) float32 → (T, vocab) float32."""
        normed = torch.from_numpy(self._norm(x)).to(self._device, self._dtype)
        return to_array(self._linear(normed))
