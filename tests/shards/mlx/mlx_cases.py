"""The same span on torch and on MLX, fed the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_backend
from swarm_node.shards.mlx.span import MlxSpan, load_mlx_span
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.types import Span

ALL = Span(0, 4)
EXACT = {"dtype": "float32", "quantize": "none"}
TORCH = LoadOptions(**EXACT, kernels="torch")
MLX = LoadOptions(**EXACT, device="mlx")
CLOSE = {"atol": 2e-5, "rtol": 2e-5}
FEEDS = [
    [(0, 40)],
    [(1, 7), (0, 1)],
    [(2, 1), (0, 1), (1, 1)],
    [(1, 1), (0, 33), (2, 1)],
    [(2, 64), (1, 1), (0, 1)],
    *[[(2, 1), (0, 1), (1, 1)]] * 2,
    [(1, 2)],
]
"""(session, tokens) of each batch: prompts and decode steps, past page ends, contexts of 1 to 100 tokens."""

Pair = tuple[SpanBackend[Any], MlxSpan]


def both(path: Path, span: Span = ALL, *, ours: LoadOptions = MLX, theirs: LoadOptions = TORCH) -> Pair:
    with open_checkpoint(str(path)) as checkpoint:
        model = load_backend(checkpoint, span, ours)
        assert isinstance(model, MlxSpan)
        return load_backend(checkpoint, span, theirs), model


def outputs(
    sessions: Any, model: Any, feeds: list[list[tuple[int, int]]] = FEEDS, **options: Any
) -> list[Any]:
    held = sessions(model, 3, 128, **options)
    generator = torch.Generator().manual_seed(5)
    hidden = model.config.hidden_size
    out = []
    for feed in feeds:
        x = torch.randn((sum(count for _, count in feed), hidden), generator=generator)
        out.append(held.forward(x, feed).clone())
    return out


def agree(sessions: Any, pair: Pair, tolerance: dict[str, float] = CLOSE, **options: Any) -> None:
    wanted, got = (outputs(sessions, model, **options) for model in pair)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs.float(), **tolerance)


def loaded(checkpoint: Checkpoint, options: LoadOptions = MLX) -> MlxSpan:
    return load_mlx_span(checkpoint, Span(0, checkpoint.config.n_blocks), options)
