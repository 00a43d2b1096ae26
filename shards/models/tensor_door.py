"""Arrays on the engine's side, tensors on the backend's, for as long as a backend takes tensors.

A backend that says its ``limit`` takes arrays, and needs nothing of this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ...swarm.codecs.activations import MAX_MAGNITUDE
from ...swarm.types import Span
from ..layers.kv_pool import BatchSlice


def limit(model: Any) -> float:
    """The largest magnitude that ``model`` can take."""
    own = getattr(model, "limit", None)
    return min(float(torch.finfo(model.dtype).max), MAX_MAGNITUDE) if own is None else float(own)


def forward(
    model: Any, rows: np.ndarray, slices: Sequence[BatchSlice], pool: Any, span: Span | None = None
) -> np.ndarray:
    """``SpanBackend.forward`` of arrays, computed when it returns."""
    if getattr(model, "limit", None) is not None:
        return np.asarray(model.forward(rows, slices, pool, span))
    slices = [replace(each, table=torch.from_numpy(each.table)) for each in slices]
    x = torch.from_numpy(rows).to(model.device, model.dtype)
    hidden = model.forward(x, slices, pool, span)
    model.synchronize()
    return np.asarray(hidden.to("cpu", torch.float32).numpy())


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """In the thread that computes: torch's ``threads``, and no gradients."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        yield
