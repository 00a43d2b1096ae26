"""Every family, read from a checkpoint that transformers has written, against transformers itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.families.rows.table import FAMILIES
from swarm_node.shards.formats.config import SidebandConfig
from swarm_node.shards.formats.tensors import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    HEAD_BIAS,
    MERGE,
    SIDE_EMBEDDING,
    SIDE_NORM,
    SIDE_PROJECTION,
    SPREAD,
)
from swarm_node.shards.loading import load_backend, load_client_model
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.errors import UnsupportedModelError
from swarm_node.swarm.types import Span
from tests.shards.models.block_reference import reference

from .cases import CASES, GGUF_CASES
from .gguf_files import write_gguf
from .models import ids, logits, saved, small_model


def computed(checkpoint: Checkpoint, tokens: torch.Tensor) -> np.ndarray:
    """Logits of all tokens, in float64."""
    config = checkpoint.config
    embedding = checkpoint.tensor(EMBEDDING).dequantize().astype(np.float64)
    x = embedding[tokens.numpy()] * config.embedding_multiplier
    others = [as_large(x @ matrix(checkpoint, SPREAD, at).T, x) for at in range(config.streams - 1)]
    if config.sideband is not None:
        others.append(beside(checkpoint, config.sideband, tokens, x))
    x = reference(checkpoint, np.concatenate((x, *others), 1))
    x, *others = np.split(x, config.streams, 1)
    others = [as_large(each @ matrix(checkpoint, MERGE, at).T, x) for at, each in enumerate(others)]
    x = (x + sum(others)) / config.streams
    norm = config.final_norm
    if norm.kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + norm.eps)
    x = x * (checkpoint.tensor(FINAL_NORM).dequantize() + norm.offset)
    if norm.bias:
        x = x + checkpoint.tensor("model.norm.bias").dequantize()
    head = embedding if config.tie_word_embeddings else checkpoint.tensor(HEAD).dequantize()
    out = x @ head.T
    if config.head_bias and checkpoint.has(HEAD_BIAS):
        out = out + checkpoint.tensor(HEAD_BIAS).dequantize()
    out = out * config.logit_multiplier
    if config.logit_softcap:
        out = config.logit_softcap * np.tanh(out / config.logit_softcap)
    return out


def matrix(checkpoint: Checkpoint, name: str, at: int) -> np.ndarray:
    return checkpoint.tensor(f"{name.format(at)}.weight").dequantize().astype(np.float64)


def as_large(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    wanted, found = ((each**2).mean(1, keepdims=True) for each in (like, x))
    return x * np.sqrt(wanted / np.maximum(found, 1e-5))


def beside(
    checkpoint: Checkpoint, settings: SidebandConfig, tokens: torch.Tensor, x: np.ndarray
) -> np.ndarray:
    """What all blocks read beside ``x``, the rows of the first."""
    projection = checkpoint.tensor(f"{SIDE_PROJECTION}.weight").dequantize().astype(np.float64)
    made = (x @ projection.T * settings.projection_scale).reshape(len(x), -1, settings.values)
    made = made / np.sqrt((made**2).mean(-1, keepdims=True) + settings.norm.eps)
    made = made * checkpoint.tensor(f"{SIDE_NORM}.weight").dequantize()
    embedded = (
        checkpoint.tensor(SIDE_EMBEDDING)
        .dequantize()
        .astype(np.float64)[np.where(tokens < settings.vocab_size, tokens, 0)]
    )
    return settings.scale * (made.reshape(len(x), -1) + settings.embedding_scale * embedded)


def assert_close(ours: np.ndarray, theirs: torch.Tensor) -> None:
    scale = theirs.abs().max().item()
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=2e-5 * scale)


CHUNKS = (1, 7, 3, 1, 17)
"""Tokens of the slices that a text is fed in."""


NO_MLX = {"gemma3n_text"}
"""Families that MLX leaves to torch."""
EXECUTORS: tuple[dict[str, str], ...] = ({"kernels": "native"}, {"kernels": "torch"}, {"device": "mlx"})


def through(
    checkpoint: Checkpoint, tokens: torch.Tensor, sessions: Callable[..., Any], **kind: str
) -> np.ndarray:
    """Logits of all tokens, in float32, of one executor that is fed in ``CHUNKS``."""
    client = load_client_model(checkpoint, LoadOptions(dtype="float32", quantize="none"))
    options = LoadOptions(**{"dtype": "float32", "quantize": "none", **kind})
    span = sessions(load_backend(checkpoint, Span(0, checkpoint.config.n_blocks), options))
    parts = np.split(client.embed(tokens.numpy()), np.cumsum(CHUNKS)[:-1])
    return client.logits(np.concatenate([span.forward(torch.from_numpy(part)).numpy() for part in parts]))


@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case: str, tmp_path: Path, sessions: Callable[..., Any]) -> None:
    model, folder = saved(case, tmp_path)
    tokens, theirs = ids(model), logits(model)
    with open_checkpoint(str(folder)) as checkpoint:
        assert checkpoint.config.family == case.split("-")[0]
        assert_close(computed(checkpoint, tokens), theirs)
        for kind in EXECUTORS:
            if "device" in kind and checkpoint.config.family in NO_MLX:
                with pytest.raises(UnsupportedModelError, match="MLX does not compute"):
                    through(checkpoint, tokens, sessions, **kind)
                continue
            ours = through(checkpoint, tokens, sessions, **kind)
            assert_close(ours, theirs)
            assert np.array_equal(ours.argmax(-1), theirs.argmax(-1).numpy())


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("quantize", ["none", "auto", "int8", "int4"])
def test_a_head_that_is_the_embedding_has_its_bias(quantize: str, kernels: str, tmp_path: Path) -> None:
    model, folder = saved("ernie4_5_moe-tied", tmp_path)
    with open_checkpoint(str(folder)) as checkpoint:
        options = LoadOptions(dtype="float32", quantize=quantize, kernels=kernels)
        client = load_client_model(checkpoint, options)
        of_nothing = client.logits(np.zeros((1, checkpoint.config.hidden_size), np.float32))
    np.testing.assert_allclose(of_nothing[0], model.lm_head.bias.detach().numpy(), rtol=1e-6)


def test_every_family_has_a_case() -> None:
    assert {case.split("-")[0] for case in CASES} == FAMILIES.keys()


@pytest.mark.parametrize("case", GGUF_CASES)
def test_gguf_equals_transformers(case: str, tmp_path: Path) -> None:
    model = small_model(case)
    with open_checkpoint(str(write_gguf(model, tmp_path / "model.gguf"))) as checkpoint:
        assert_close(computed(checkpoint, ids(model)), logits(model))
