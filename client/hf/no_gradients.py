"""A loss that can be read, and says clearly why it cannot be trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...swarm.errors import UsageError


class _NoGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, _: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise UsageError(
            "no gradients come back from a swarm: it cannot be trained",
            hint="Read the loss with .item(), under torch.no_grad().",
        )


def without_gradients(value: Tensor) -> Tensor:
    """``value``, whose ``backward`` raises UsageError."""
    return _NoGradients.apply(value, torch.zeros((), requires_grad=True))
