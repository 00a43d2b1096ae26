"""Blocks behind the last that guess further tokens, and their chains of guesses, against transformers' blocks
and norms put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_backend, load_client_model, load_next_part
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError, UsageError
from swarm_node.swarm.types import Span

from .behind import ONE, gguf_with_behind, with_behind
from .families.models import ids, saved
from .families.test_families import CHUNKS, EXECUTORS, assert_close
from .families.test_layouts import Tensors, assert_same, read, rewritten

OPTIONS = LoadOptions(dtype="float32", quantize="none")
DEPTH = 4
"""Guesses behind the last token, each made from the one before."""


def guessed(
    path: Path,
    tokens: torch.Tensor,
    sessions: Callable[..., Any],
    guesses: Sequence[int] = (),
    **kind: str,
) -> np.ndarray:
    """Logits of the tokens behind the second to the last, fed in ``CHUNKS``, and behind each of ``guesses``
    from them."""
    with open_checkpoint(str(path)) as checkpoint:
        options = replace(OPTIONS, **kind)
        client = load_client_model(checkpoint, replace(options, device="cpu"))
        whole = sessions(load_backend(checkpoint, Span(0, checkpoint.config.n_blocks), options))
        rows = whole.forward(torch.from_numpy(client.embed(tokens.numpy()))).numpy()
        hidden, following = client.final_norm(rows)[:-1], tokens.numpy()[1:]
        part = load_next_part(checkpoint, client, options)
        memory, at, found = OwnMemory(part.blocks, "float32", len(tokens) + len(guesses)), 0, []
        made = hidden
        for count in (*CHUNKS[:-1], len(following) - sum(CHUNKS[:-1])):
            end, where = at + count, [memory.slice(at, count)]
            made = part.forward(hidden[at:end], following[at:end], where, memory.pool)
            found.append(part.logits(made))
            at = end
        for number, guess in enumerate(guesses, start=at):
            made = part.forward(part.hidden(made[-1:]), [guess], [memory.slice(number, 1)], memory.pool)
            found.append(part.logits(made))
        return np.concatenate(found)


def chain(logits: torch.Tensor) -> list[int]:
    """The guesses that all but the first of ``DEPTH`` were made behind."""
    return logits[-DEPTH:-1].argmax(1).tolist()


@pytest.mark.parametrize("case", ONE)
def test_equals_transformers(case: str, tmp_path: Path, sessions: Callable[..., Any]) -> None:
    behind = with_behind(case, tmp_path)
    wanted = behind.logits(DEPTH)
    for kind in EXECUTORS:
        assert_close(guessed(tmp_path, ids(behind.model), sessions, chain(wanted), **kind), wanted)


@pytest.mark.parametrize("case", ["qwen3_5_text", "qwen3_5_moe_text", "glm4_moe", "glm_moe_dsa"])
def test_gguf_equals_transformers(case: str, tmp_path: Path, sessions: Callable[..., Any]) -> None:
    behind, path = gguf_with_behind(case, tmp_path)
    wanted = behind.logits(DEPTH)
    assert_close(guessed(path, ids(behind.model), sessions, chain(wanted)), wanted)


def test_they_are_no_part_of_the_model(tmp_path: Path) -> None:
    """Neither its blocks nor its tensors, and they may be missing whatever config.json says."""
    _, folder = saved("qwen3_5_text", tmp_path)
    wanted = read(folder)
    with open_checkpoint(str(folder)) as checkpoint:
        assert checkpoint.config.next_blocks == 1
        with pytest.raises(UnsupportedModelError, match="has no blocks that guess further tokens"):
            checkpoint.with_next()
    with_behind("qwen3_5_text", tmp_path)
    assert_same(read(folder), wanted)
    with open_checkpoint(str(folder)) as checkpoint:
        whole = checkpoint.with_next()
        assert whole.config.n_blocks == checkpoint.config.n_blocks + 1
        assert whole.ref == checkpoint.ref
        assert whole.config.next is None
        client = load_client_model(checkpoint, OPTIONS)
        with pytest.raises(UsageError, match="has 1 blocks that guess"):
            load_next_part(checkpoint, client, OPTIONS, 1)


def test_damaged_ones_leave_the_model_as_it_is(tmp_path: Path) -> None:
    with_behind("qwen3_5_text", tmp_path)

    def wrong(tensors: Tensors) -> Tensors:
        return tensors | {"mtp.fc.weight": tensors["mtp.fc.weight"][:, :64].copy()}

    with open_checkpoint(str(rewritten(tmp_path, wrong))) as checkpoint:
        with pytest.raises(CheckpointError, match=r"mtp\.fc\.weight .* \[64, 64\], .* says \[64, 128\]"):
            checkpoint.with_next()
        assert checkpoint.tensor("model.layers.0.state.out_proj.weight").rows == 64
