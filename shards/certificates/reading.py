"""Who reads the rows at a boundary, and the weights that these are read with: what an error counts by.

A block adds to its rows, so what is lost at a boundary is read by every norm behind it and not by the next
one alone. On SmolLM2, scales made for the next norm alone diverged up to seven times as much as those made
for all norms behind.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from ...swarm.fidelity.row_error import usable_weights
from ...swarm.fidelity.row_reader import RowReader
from ..checkpoint.checkpoint import Checkpoint
from ..formats.blocks.norm import NormConfig
from ..formats.tensors import FINAL_NORM
from .certificate import Certificate


def row_reader(
    checkpoint: Checkpoint, certificate: Certificate | None, boundary: int, end: int | None = None
) -> RowReader:
    """Of rows that enter block ``boundary``, or leave the last one. ``end``: as in ``reading_weights``."""
    return RowReader(
        reading_weights(checkpoint, boundary, end),
        time.monotonic,
        passed=() if certificate is None else certificate.passed,
        table=None if certificate is None else certificate.scales().get(boundary),
    )


def reading_weights(checkpoint: Checkpoint, boundary: int, end: int | None = None) -> np.ndarray:
    """(width,) float32, above 0: the root mean square of the weights of all norms that read the rows which
    enter block ``boundary``, each norm's own in units of its root mean square. ``end``: only of blocks before
    it, as a node knows them; None: of all, and the final norm's.

    All 1 where nothing weighs the rows: blocks without a norm before them, and models that transformers' own
    layers compute.
    """
    config = checkpoint.config
    width = config.row_width(boundary)
    squares = np.zeros(config.hidden_size)
    if config.foreign is None:
        for name, norm in _norms(checkpoint, boundary, end):
            weights = checkpoint.tensor(name).dequantize() + np.float32(norm.offset)
            mean = float(np.square(weights, dtype=np.float64).mean())
            if 0 < mean < np.inf:
                squares += np.square(weights, dtype=np.float64) / mean
    if not squares.any():
        return usable_weights(None, width)
    beside = np.full(width - len(squares), squares.mean())  # values beside the residual, which no norm reads
    return usable_weights(np.sqrt(np.concatenate([squares, beside])), width)


def _norms(checkpoint: Checkpoint, boundary: int, end: int | None) -> Iterator[tuple[str, NormConfig]]:
    config = checkpoint.config
    for number in range(boundary, config.n_blocks if end is None else end):
        block = config.blocks[number]
        for norm, name in ((block.norm, "input_layernorm"), (block.mlp_norm, "post_attention_layernorm")):
            if norm is not None and norm.weighted:
                yield f"model.layers.{number}.{name}.weight", norm
    if end is None and config.final_norm.weighted:
        yield FINAL_NORM, config.final_norm
