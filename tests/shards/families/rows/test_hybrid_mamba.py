"""Families with Mamba-2: what their settings may be, and answers of two hops against transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.families.named_source import NamedSource
from swarm_node.shards.families.places import Place
from swarm_node.shards.formats.gguf.config import gguf_config
from swarm_node.shards.formats.gguf.reader import open_gguf
from swarm_node.shards.formats.hf.config import hf_config
from swarm_node.shards.formats.tensors import TensorInfo
from swarm_node.shards.loading import load_backend, load_client_model
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError
from swarm_node.swarm.types import Span

from ..cases import CASES, SMALL
from ..gguf_files import write_gguf
from ..models import ids, saved, small_model

GREEDY = ("bamba", "granitemoehybrid", "falcon_h1", "nemotron_h-experts")
PROMPT, NEW = 9, 40
"""Tokens: together more than a page."""


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("case", GREEDY)
def test_two_hops_write_transformers_tokens(
    case: str, kernels: str, tmp_path: Path, sessions: Callable[..., Any]
) -> None:
    model, folder = saved(case, tmp_path)
    prompt = ids(model)[:PROMPT]
    with torch.no_grad():
        said = model.generate(
            prompt[None],
            attention_mask=torch.ones(1, PROMPT),  # the first token is the one for padding, too
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
        )[0]
    with open_checkpoint(str(folder)) as checkpoint:
        options = LoadOptions(dtype="float32", quantize="none", kernels=kernels)
        client, blocks = load_client_model(checkpoint, options), checkpoint.config.n_blocks
        spans = (Span(0, blocks // 2), Span(blocks // 2, blocks))
        hops = [sessions(load_backend(checkpoint, span, options)) for span in spans]
        tokens, fed = prompt.tolist(), 0
        while len(tokens) < len(said):
            rows = torch.from_numpy(client.embed(np.array(tokens[fed:])))
            fed = len(tokens)
            for hop in hops:
                rows = hop.forward(rows)
            likely = client.logits(rows[-1:].numpy())[0]
            likely[model.config.eos_token_id] = -np.inf  # as min_new_tokens says
            tokens.append(int(likely.argmax()))
    assert tokens == said.tolist()


@pytest.mark.parametrize(
    ("limit", "steps"),
    [
        (None, (0.0, np.inf)),
        ([0.0, np.inf], (0.0, np.inf)),
        ([0.001, {"__float__": "Infinity"}], (0.001, np.inf)),
        ([0, 10**400], (0.0, np.inf)),
        ([0.5, 2], (0.5, 2.0)),
    ],
)
def test_steps_may_have_no_end(limit: Any, steps: tuple[float, float]) -> None:
    config = config_of("bamba", time_step_limit=limit)
    assert config.blocks[0].state.steps == steps


def config_of(case: str, **changes: Any) -> Any:
    document = {"model_type": case.split("-")[0], **SMALL, **CASES[case], **changes}
    return hf_config(document, {}, "config.json")


NEVER: dict[str, tuple[str, dict[str, Any], str]] = {
    "a step that has to be negative": ("bamba", {"time_step_limit": [-1.0, 1.0]}, "time_step_limit"),
    "a least step above the most": ("bamba", {"time_step_limit": [2.0, 1.0]}, "time_step_limit"),
    "steps without numbers": ("bamba", {"time_step_limit": ["0", {}]}, "time_step_limit"),
    "heads that do not fill Mamba": ("bamba", {"mamba_d_head": 8}, "mamba_n_heads is 8"),
    "another activation behind the convolution": ("bamba", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "rotation over another part": ("bamba", {"partial_rotary_factor": 0.25}, "partial_rotary_factor"),
    "other positions": ("granitemoehybrid", {"position_embedding_type": "alibi"}, "position_embedding_type"),
    "multipliers that are missing": ("falcon_h1", {"ssm_multipliers": [1.0] * 4}, "ssm_multipliers"),
    "a bias of what is multiplied": ("falcon_h1", {"attention_bias": True}, "attention_in_multiplier is 1.3"),
    "a bias of Mamba's input": ("falcon_h1", {"mamba_proj_bias": True}, "ssm_in_multiplier is 1.2"),
    "letters that nobody knows": (
        "nemotron_h",
        {"layers_block_type": None, "hybrid_override_pattern": "M?"},
        "hybrid_override_pattern is 'M\\?'",
    ),
    "types that nobody knows": (
        "nemotron_h",
        {"layers_block_type": ["conv"]},
        "layers_block_type has 'conv'",
    ),
    "no blocks": ("nemotron_h", {"layers_block_type": []}, "num_hidden_layers is 0"),
    "a window": ("nemotron_h", {"sliding_window": 8}, "sliding_window is 8"),
    "two shared experts": ("nemotron_h-experts", {"n_shared_experts": 2}, "n_shared_experts is 2"),
    "biases beside a latent": ("nemotron_h-experts", {"mlp_bias": True}, "moe_latent_size"),
}


@pytest.mark.parametrize("what", NEVER)
def test_what_would_be_computed_otherwise_is_refused(what: str) -> None:
    case, changes, named = NEVER[what]
    with pytest.raises((CheckpointError, UnsupportedModelError), match=f"^config.json: {named}"):
        config_of(case, **changes)


def test_the_pattern_says_how_many_blocks_there_are() -> None:
    config = config_of("nemotron_h", layers_block_type=None, hybrid_override_pattern="MEM*-")
    kinds = [(block.state, block.attention, block.mlp, block.experts) for block in config.blocks]
    assert [[part is not None for part in kind].index(True) for kind in kinds] == [0, 3, 0, 1, 2]
    assert all(sum(part is not None for part in kind) == 1 for kind in kinds)


def test_what_no_block_has_says_nothing() -> None:
    attends = {"layers_block_type": ["full_attention"]}
    of_others: dict[str, Any] = {"mlp_bias": True, "use_bias": True, "n_routed_experts": 4}
    assert config_of("nemotron_h", **attends, **of_others) == config_of("nemotron_h", **attends)
    keeps: dict[str, Any] = {"layer_types": ["linear_attention"], "num_hidden_layers": 1}
    of_others = {"attention_bias": True, "attention_multiplier": 0.5}
    assert config_of("granitemoehybrid", **keeps, **of_others) == config_of("granitemoehybrid", **keeps)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("rope.dimension_count", 8, "rope.dimension_count is 0.5"),  # llama.cpp's Bamba
        ("ssm.inner_size", 100, "ssm.time_step_rank is 8"),
        ("ssm.group_count", 3, "8 heads of a recurrence"),
    ],
)
def test_gguf_files_of_other_shapes_are_refused(key: str, value: int, named: str, tmp_path: Path) -> None:
    source = open_gguf(write_gguf(small_model("granitemoehybrid-dense"), tmp_path / "model.gguf"))
    source.header.metadata = {**source.header.metadata, f"granitehybrid.{key}": value}
    with pytest.raises((CheckpointError, UnsupportedModelError), match=named):
        gguf_config(source)
    source.close()


@pytest.mark.parametrize("shape", [(1, -1), (-1, 1)])
def test_vectors_in_one_tensor_may_have_a_dimension_more(shape: tuple[int, int], tmp_path: Path) -> None:
    _, folder = saved("bamba", tmp_path)
    name, own = "model.layers.0.mamba.conv1d.bias", "model.layers.0.state.k_conv.bias"
    with open_checkpoint(str(folder)) as checkpoint:
        wanted = checkpoint.tensor(own).dequantize()
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: tensors[name].reshape(shape)}, folder / "model.safetensors")
    with open_checkpoint(str(folder)) as checkpoint:
        np.testing.assert_array_equal(checkpoint.tensor(own).dequantize(), wanted)


def test_vectors_are_not_quantized() -> None:
    source: Any = SimpleNamespace(manifest={"ssm_d": TensorInfo("ssm_d", (32, 1), "Q8_0", 34)})
    with pytest.raises(UnsupportedModelError, match="tensor ssm_d of a file has type Q8_0"):
        NamedSource(source, {"state.skip": Place("ssm_d", (32,), (32,))}, "a file")
