"""Blocks behind the last that guess further tokens, against transformers' blocks and norms put together as
vLLM and llama.cpp read them: transformers itself ignores them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_backend, load_client_model, load_next_part
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError, UsageError
from swarm_node.swarm.types import Span

from .families.gguf_files import write_gguf
from .families.models import ids, randomise, saved, small_model
from .families.test_families import CHUNKS, EXECUTORS, assert_close
from .families.test_layouts import Tensors, assert_same, changed, read, rewritten

QWEN = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
NAMES = {
    "mtp": ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm"),
    "hf": ("enorm", "hnorm", "eh_proj", "shared_head.norm"),
    "gguf": ("nextn.enorm", "nextn.hnorm", "nextn.eh_proj", "nextn.shared_head_norm"),
}
"""Of the two norms, the projection and the last norm."""
ONE: dict[str, dict[str, Any]] = {
    **{case: {"layer_types": ["full_attention"]} for case in QWEN},
    **{case: {"first_k_dense_replace": 0} for case in ("deepseek_v3", "glm4_moe")},
    "glm4_moe_lite": {"mlp_layer_types": ["sparse"]},
}
"""Settings of a model whose only block is such a one."""
OPTIONS = LoadOptions(dtype="float32", quantize="none")
DEPTH = 4
"""Guesses behind the last token, each made from the one before."""


class Behind:
    """Such a block of transformers', with two norms and a projection before it, beside ``model``."""

    def __init__(self, case: str, model: Any) -> None:
        self.model, self.one = model, small_model(case, num_hidden_layers=1, **ONE[case])
        hidden, norm = model.config.hidden_size, type(self.one.model.norm)
        self.norms = [randomise(norm(hidden, model.config.rms_norm_eps)) for _ in range(2)]
        self.projection = randomise(torch.nn.Linear(2 * hidden, hidden, bias=False))

    def logits(self, depth: int = 1) -> torch.Tensor:
        """Of the tokens behind the second to the last; and of ``depth`` - 1 more, each behind the most likely
        one before it."""
        tokens, whole = ids(self.model), self.model.model
        with torch.no_grad():
            hidden, following = whole(tokens[None]).last_hidden_state[0, :-1], tokens[1:]
            while True:
                embedded = whole.embed_tokens(following)
                both = torch.cat((self.norms[0](embedded), self.norms[1](hidden)), 1)
                rows = self.one.model(inputs_embeds=self.projection(both)[None]).last_hidden_state[0]
                logits = self.model.lm_head(rows)
                if len(rows) == len(tokens) - 2 + depth:
                    return logits
                hidden = torch.cat((hidden, rows[-1:]))
                following = torch.cat((following, logits[-1:].argmax(1)))

    def beside(self, kind: str, begin: str, more: float = 0.0) -> Tensors:
        """``more``: what the file's norms have more."""
        parts = (*self.norms, self.projection, self.one.model.norm)
        return {
            f"{begin}{name}.weight": part.weight.detach().numpy() + (more if part.weight.ndim == 1 else 0)
            for name, part in zip(NAMES[kind], parts, strict=True)
        }


def with_behind(case: str, folder: Path) -> Behind:
    model, _ = saved(case, folder)
    behind, last = Behind(case, model), f"model.layers.{model.config.num_hidden_layers}."
    block = "mtp.layers.0." if case in QWEN else last
    more = behind.beside("mtp", "mtp.") if case in QWEN else behind.beside("hf", last)
    behind.one.save_pretrained(folder / "one")
    for name, value in load_file(folder / "one" / "model.safetensors").items():
        if name.startswith("model.layers.0."):
            more[name.replace("model.layers.0.", block)] = value
    if case not in QWEN:  # which the file has twice
        more[f"{last}embed_tokens.weight"] = model.model.embed_tokens.weight.detach().numpy().copy()
    rewritten(folder, lambda tensors: tensors | more, num_nextn_predict_layers=1)
    return behind


def gguf_with_behind(case: str, folder: Path) -> tuple[Behind, Path]:
    model = small_model(case)
    behind, number = Behind(case, model), model.config.num_hidden_layers
    path = write_gguf(model, folder / "model.gguf")
    more = behind.beside("gguf", f"blk.{number}.", 1.0 if case in QWEN else 0.0)

    def taken(tensors: Tensors) -> Tensors:
        more.update(
            {name.replace("blk.0.", f"blk.{number}."): tensors[name] for name in tensors if "blk.0." in name}
        )
        return tensors

    changed(write_gguf(behind.one, folder / "one.gguf"), taken)
    keys = {"block_count": number + 1, "nextn_predict_layers": 1}
    return behind, changed(path, lambda tensors: tensors | more, **keys)


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


@pytest.mark.parametrize("case", ["qwen3_5_text", "qwen3_5_moe_text", "glm4_moe"])
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
