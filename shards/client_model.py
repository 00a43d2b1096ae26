"""What the client holds of a model: embedding, final norm and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .autoselect import LoadOptions
from .span_model import Progress

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .config import ModelConfig


class ClientModel:
    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    weight_bytes: int
    weights: str

    def embed(self, ids: Sequence[int] | Tensor) -> Tensor:
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError


def load_client_model(
    checkpoint: Checkpoint, options: LoadOptions, progress: Progress | None = None
) -> ClientModel:
    raise NotImplementedError
