"""Which tensors of a file a node of some blocks needs, told by names alone; and what no text model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.families.places import Pairs, row_order
from swarm_node.shards.formats.hf.config import hf_config
from swarm_node.shards.formats.hf.tensors import stored_places
from swarm_node.shards.formats.tensors import EMBEDDING, HEAD, needed_tensors
from swarm_node.swarm.errors import UnsupportedModelError
from swarm_node.swarm.types import Span

from .cases import CASES, SMALL
from .models import saved, small_model


@pytest.mark.parametrize("case", ["phi3", "gemma2", "glm4", "starcoder2"])
@pytest.mark.parametrize("root", ["model.", "language_model.model.", "model.language_model."])
def test_blocks_need_their_own_tensors_and_no_others(case: str, root: str) -> None:
    present = {name.replace("model.", root, 1) for name in small_model(case).state_dict()} - {HEAD}
    document = {"model_type": case, **SMALL, **CASES[case], "tie_word_embeddings": True}
    config, found = stored_places(hf_config(document, {}, "config.json"), present)
    for block in range(3):
        stored = {found[name].stored for name in needed_tensors(config, Span(block, block + 1), False)}
        assert stored == {name for name in present if f".layers.{block}." in name}
    client = {found[name].stored for name in needed_tensors(config, None, True)}
    assert client == {name for name in present if ".layers." not in name}


def test_a_head_in_the_file_is_the_head() -> None:
    config = hf_config({"model_type": "llama", **SMALL, "tie_word_embeddings": True}, {}, "config.json")
    assert not stored_places(config, {EMBEDDING, HEAD})[0].tie_word_embeddings
    assert not stored_places(config, {f"language_model.{HEAD}"})[0].tie_word_embeddings
    assert stored_places(config, {EMBEDDING})[0].tie_word_embeddings


def test_neighbours_become_halves() -> None:
    assert row_order(Pairs(2, 4, 0, 4)).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert row_order(Pairs(1, 8, 2, 4)).tolist() == [0, 1, 2, 4, 3, 5, 6, 7]
    assert row_order(Pairs(2, 5, 0, 2)).tolist() == list(range(10))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_kv_shared_layers", 2),
        ("use_bidirectional_attention", "all"),
    ],
)
def test_parts_of_gemma_4_that_are_not_computed_are_refused_by_name(key: str, value: Any) -> None:
    document = {"model_type": "gemma4_text", **SMALL, **CASES["gemma4_text"], key: value}
    with pytest.raises(UnsupportedModelError, match=f"config.json: {key} is {value!r}"):
        hf_config(document, {}, "config.json")


@pytest.mark.parametrize(
    "case", ["phi3", "deepseek_v3", "glm_moe_dsa", "kimi_linear", "qwen3_next", "falcon_h1", "lfm2_moe"]
)
def test_a_further_dimension_of_1_changes_nothing(case: str, tmp_path: Path) -> None:
    whole, more = tmp_path / "whole", tmp_path / "more"
    for folder in (whole, more):
        saved(case, folder)
    tensors = load_file(more / "model.safetensors")
    save_file(
        {name: each[None] for name, each in tensors.items()}, more / "model.safetensors", {"format": "pt"}
    )
    with open_checkpoint(str(whole)) as wanted, open_checkpoint(str(more)) as found:
        for name in wanted.manifest:
            assert np.array_equal(found.tensor(name).dequantize(), wanted.tensor(name).dequantize()), name
