"""The weights that a boundary's rows are read with: of every norm behind it, of a span's own, or none."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from scripts.lab.tiny_model import BLOCKS, HIDDEN, write_tiny_model
from swarm_node.shards.certificates.reading import reading_weights
from swarm_node.shards.checkpoint.opening import open_checkpoint
from tests.shards.families.models import saved


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose norms differ in size and in their last channel, which grows with their depth."""
    write_tiny_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for number, name in enumerate(sorted(name for name in tensors if "norm" in name)):
        weights = np.full(HIDDEN, 10.0 ** (number - 3), np.float32)
        weights[-1] *= -(2 + number)
        tensors[name] = weights
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_each_norm_counts_alike_whatever_its_size(folder: Path) -> None:
    with open_checkpoint(str(folder)) as checkpoint:
        found = [reading_weights(checkpoint, boundary) for boundary in range(BLOCKS + 1)]
        of_span = reading_weights(checkpoint, 0, 1)
    steps = [weights[-1] / weights[0] for weights in found]
    # Of the final norm alone, which is the last by name.
    assert steps[-1] == pytest.approx(2 + 2 * BLOCKS)
    assert all(one < other for one, other in pairwise(steps))
    assert 2 < of_span[-1] / of_span[0] < 3
    for weights in (*found, of_span):
        assert weights.shape == (HIDDEN,)
        assert np.ptp(weights[:-1]) == 0


@pytest.mark.parametrize("case", ["olmo2", "gemma3_text", "starcoder2"])
def test_families_have_norms_elsewhere(case: str, tmp_path: Path) -> None:
    """Behind the blocks' parts alone, with weights less 1, with biases."""
    _, folder = saved(case, tmp_path)
    with open_checkpoint(str(folder)) as checkpoint:
        config = checkpoint.config
        for boundary in (0, config.n_blocks):
            weights = reading_weights(checkpoint, boundary)
            assert weights.shape == (config.row_width(boundary),)
            assert weights.min() > 0
            assert np.isfinite(weights).all()
        if config.blocks[0].norm is None and config.blocks[0].mlp_norm is None:
            assert np.ptp(reading_weights(checkpoint, 0, 1)) == 0
