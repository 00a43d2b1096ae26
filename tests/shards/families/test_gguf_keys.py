"""Every key of an architecture that llama.cpp knows, in a file of every family: it changes the model, or is
refused by name, or is known to mean nothing."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from swarm_node.shards.formats.config import ModelConfig
from swarm_node.shards.formats.gguf.config import gguf_config
from swarm_node.shards.formats.gguf.reader import open_gguf
from swarm_node.shards.formats.gguf.unread import HARMLESS
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError

from .cases import GGUF_CASES
from .gguf_files import write_gguf
from .models import small_model


def known_keys(group: type) -> Iterator[str]:
    for each in vars(group).values():
        if inspect.isclass(each):
            yield from known_keys(each)
        elif isinstance(each, str) and each.startswith("{arch}."):
            yield each.removeprefix("{arch}.")


KEYS = sorted({*known_keys(gguf.Keys), "attention.chunk_size", "rope.scale_linear"})
PAIRS = ((3, 5), (0.375, 0.625), (True, "yes"))
OF_YARN = {f"rope.scaling.yarn_{name}" for name in ("beta_fast", "beta_slow", "log_multiplier")}
OF_CACHE = {"attention.head_count_kv", "attention.key_length", "attention.value_length"}
"""Sizes of what is cached, which follow from others where attention is latent."""
UNSAID = {
    "gemma2": {
        "attention.sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "llama4_text": {"attention.chunk_size": 8192},
}
"""What llama.cpp computes where the file lacks these keys."""
FIRST = list({case.split("-")[0]: case for case in reversed(GGUF_CASES)}.values())


def means_nothing(key: str, config: ModelConfig) -> bool:
    """In a file of a model that does not have what the key is for."""
    attentions = [block.attention for block in config.blocks if block.attention]
    ropes = {block.rope.type for block in config.blocks if block.rope}
    no_window = not any(attention.window for attention in attentions)
    no_experts = not any(block.experts for block in config.blocks)
    return (
        key in HARMLESS
        or (key.startswith("expert_") and no_experts)
        or (key.endswith(("_swa", "sliding_window_pattern")) and no_window)
        or (key.startswith("rope.") and not ropes)
        or (key in OF_YARN and "yarn" not in ropes)
        or (key in OF_CACHE and any(attention.latent for attention in attentions))
        or (key == "feed_forward_length" and all(block.mlp is None for block in config.blocks))
        # The context is the original one times the factor, where the file says both.
        or (key == "rope.scaling.original_context_length" and ropes <= {"default", "proportional"})
        or (key == "context_length" and "yarn" in ropes)
    )


@pytest.mark.parametrize("case", FIRST)
def test_no_key_is_ignored(case: str, tmp_path: Path) -> None:
    source = open_gguf(write_gguf(small_model(case), tmp_path / "model.gguf"))
    metadata = source.header.metadata
    architecture = metadata["general.architecture"]
    plain = gguf_config(source)
    ignored, unnamed = set(), set()
    for key in KEYS:
        name = f"{architecture}.{key}"
        for pair in PAIRS:
            found = []
            for value in pair:
                source.header.metadata = {**metadata, name: value}
                try:
                    found.append(gguf_config(source))
                except (CheckpointError, UnsupportedModelError) as error:
                    if name not in metadata and not re.search(rf"{architecture}\.|groups", str(error)):
                        unnamed.add(str(error))
            if found == [plain, plain]:
                ignored.add(key)
    source.close()
    assert not {key for key in ignored if not means_nothing(key, plain)}
    assert not unnamed


@pytest.mark.parametrize("case", UNSAID)
def test_a_key_that_is_missing_has_llama_cpps_value(case: str, tmp_path: Path) -> None:
    source = open_gguf(write_gguf(small_model(case), tmp_path / "model.gguf"))
    metadata = {**source.header.metadata}
    architecture = metadata["general.architecture"]
    metadata[f"{architecture}.context_length"] = 20_000
    said = {f"{architecture}.{key}": value for key, value in UNSAID[case].items()}
    source.header.metadata = {key: value for key, value in metadata.items() if key not in said}
    without = gguf_config(source)
    source.header.metadata = {**metadata, **said}
    assert without == gguf_config(source)
    assert any(block.attention.reach for block in without.blocks)
    source.close()
