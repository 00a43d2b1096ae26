"""Models that see, too, are served as their text part: what belongs to the other parts is not read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.swarm.errors import UnsupportedModelError

from .cases import CASES, SMALL
from .models import ids, logits, randomise
from .test_families import assert_close, computed

VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN = {
    "depth": 1,
    "num_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 16,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
}
WRAPPED = {
    "gemma3": (
        "gemma3_text",
        {"vision_config": {"model_type": "siglip_vision_model", **VISION}, "mm_tokens_per_image": 4},
    ),
    "mistral3": ("mistral-window", {"vision_config": {"model_type": "pixtral", "head_dim": 8, **VISION}}),
    "mistral3-ministral3": (
        "ministral3",
        {"vision_config": {"model_type": "pixtral", "head_dim": 8, **VISION}},
    ),
    "llama4": ("llama4_text", {"vision_config": {**VISION, "vision_output_dim": 16}}),
    "gemma4": (
        "gemma4_text",
        {"vision_config": {**VISION, "head_dim": 8, "num_key_value_heads": 2}, "audio_config": None},
    ),
    "lfm2_vl": ("lfm2", {"vision_config": {"model_type": "siglip2_vision_model", **VISION}}),
    "lfm3_vl": ("lfm3", {"vision_config": {"model_type": "lfm3_vl_vision", **VISION}}),
    "qwen3_5": ("qwen3_5_text", {"vision_config": QWEN}),
    "qwen3_5_moe": ("qwen3_5_moe_text", {"vision_config": QWEN}),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_the_text_part_equals_transformers(case: str, tmp_path: Path) -> None:
    text, more = WRAPPED[case]
    settings: dict[str, Any] = {**SMALL, **CASES[text], "model_type": text.split("-")[0]}
    config = transformers.AutoConfig.for_model(case.split("-")[0], text_config=settings, **more)
    torch.manual_seed(1)
    model = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    randomise(model)
    model.save_pretrained(tmp_path)
    with open_checkpoint(str(tmp_path)) as checkpoint:
        assert checkpoint.config.family == text.split("-")[0]
        assert_close(computed(checkpoint, ids(model)), logits(model))
    document = json.loads((tmp_path / "config.json").read_text())
    document["text_config"]["model_type"] = "mamba"
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(UnsupportedModelError, match="model family 'mamba'"):
        open_checkpoint(str(tmp_path))
