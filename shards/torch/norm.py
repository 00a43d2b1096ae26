"""RMS normalisation in few operations: at decode, what counts is how many there are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class RmsNorm:
    """``norm(x)``: x (T, hidden) → x / sqrt(mean(x²) + eps) * weight, in x's type.

    In float32, sqrt(sum(x²) + eps * hidden) is one ``vector_norm`` and one ``hypot``, with sqrt(hidden)
    folded into the weight: 10 against 17 µs for ``F.rms_norm`` at one row, 61 times a token.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        hidden = weight.shape[0]
        self.weight = weight
        self.eps = eps
        self._shape = (hidden,)
        self._sharp = weight * hidden**0.5 if weight.dtype == torch.float32 else None
        self._floor = torch.full((1, 1), (eps * hidden) ** 0.5, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        if self._sharp is None or x.dtype is not torch.float32:
            return F.rms_norm(x, self._shape, self.weight, self.eps)
        return (x * self._sharp).div_(torch.hypot(torch.linalg.vector_norm(x, 2, -1, True), self._floor))
