"""Every family, read from a checkpoint that transformers has written, against transformers itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.families.rows.table import FAMILIES
from swarm_node.shards.formats.tensors import EMBEDDING, FINAL_NORM, HEAD
from tests.shards.models.block_reference import reference

from .cases import CASES
from .models import ids, logits, saved


def computed(checkpoint: Checkpoint, tokens: torch.Tensor) -> np.ndarray:
    """Logits of all tokens, in float64."""
    config = checkpoint.config
    embedding = checkpoint.tensor(EMBEDDING).dequantize().astype(np.float64)
    x = reference(checkpoint, embedding[tokens.numpy()] * config.embedding_multiplier)
    norm = config.final_norm
    if norm.kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + norm.eps)
    x = x * (checkpoint.tensor(FINAL_NORM).dequantize() + norm.offset)
    if norm.bias:
        x = x + checkpoint.tensor("model.norm.bias").dequantize()
    head = embedding if config.tie_word_embeddings else checkpoint.tensor(HEAD).dequantize()
    out = x @ head.T * config.logit_multiplier
    if config.logit_softcap:
        out = config.logit_softcap * np.tanh(out / config.logit_softcap)
    return out


def assert_close(ours: np.ndarray, theirs: torch.Tensor) -> None:
    scale = theirs.abs().max().item()
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case: str, tmp_path: Path) -> None:
    model, folder = saved(case, tmp_path)
    with open_checkpoint(str(folder)) as checkpoint:
        assert checkpoint.config.family == case.split("-")[0]
        assert_close(computed(checkpoint, ids(model)), logits(model))


def test_every_family_has_a_case() -> None:
    assert {case.split("-")[0] for case in CASES} == FAMILIES.keys()
