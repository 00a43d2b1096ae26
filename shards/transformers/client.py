"""The client's part of a model that only transformers knows: embedding, final norm and head of its own."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...swarm.errors import SwarmError
from ..checkpoint.checkpoint import Checkpoint
from ..formats.foreign_config import ForeignConfig
from ..formats.transformers.layered import LayeredModel, unusable
from ..models.client_part import ClientModel
from ..models.load_plan import LoadPlan
from ..torch.tensors.device import Target, to_array
from .weights import load_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..models.weight_loader import Progress


class _Parts:
    """Rows of float32 in and out of ``made``, from any thread."""

    def __init__(self, made: LayeredModel, target: Target, threads: int) -> None:
        self._made, self._target, self._threads = made, target, threads
        self._lock = Lock()

    def dequantize_rows(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of the embedding."""
        return self._compute(self._made.embedded, torch.from_numpy(ids).to(self._target.device))

    def norm(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._compute(self._made.normed, self._target.tensor(hidden))

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._compute(self._made.logits, self._target.tensor(hidden))

    def _compute(self, function: Callable[[Tensor], Tensor], x: Tensor) -> NDArray[np.float32]:
        with self._lock, torch.inference_mode():
            if torch.get_num_threads() != self._threads:
                torch.set_num_threads(self._threads)
            return to_array(function(x))


def load_foreign_client(
    checkpoint: Checkpoint,
    foreign: ForeignConfig,
    plan: LoadPlan,
    progress: Progress | None = None,
    *,
    threads: int = 1,
) -> ClientModel:
    """As ``loading.load_client_model``."""
    target = Target.of(plan)
    made = LayeredModel(foreign.document, target.dtype)
    nbytes = load_weights(made, checkpoint, foreign.client, target.device, "embedding and head", progress)
    parts = _Parts(made, target, threads)
    try:
        rows = target.tensor(parts.dequantize_rows(np.zeros(3, np.int64)))
        with torch.inference_mode():
            made.find_form(rows)
    except SwarmError:
        raise
    except Exception as error:  # noqa: BLE001  whatever transformers' code raises
        raise unusable(error) from None
    return ClientModel(
        *(checkpoint.config, parts, parts.norm, parts.logits, plan.device, nbytes, plan.dtype),
        *("transformers", checkpoint.release),
    )
