"""From a name or a path to a connected client, and the configurations that transformers wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, LlamaConfig, PreTrainedConfig

from ...swarm.errors import UsageError
from ..connecting import ClientOptions
from ..local_model import LocalModel
from ..swarm_model import SwarmModel
from .client_part import client_part

_OPTIONS = frozenset(ClientOptions.__annotations__) - {"initial_peers"}
_HINTS = {
    "device_map": "Use device= for embedding and head; the layers are the peers'.",
    "quantization_config": 'Use quantize= for the head ("none", "int8", "int4"); peers choose for theirs.',
    "load_in_8bit": 'Use quantize="int8".',
    "load_in_4bit": 'Use quantize="int4".',
    "gguf_file": "Give the path of the .gguf file itself.",
    "trust_remote_code": "Models with code of their own cannot be run.",
    "attn_implementation": "Attention is the peers' business.",
}


def connect(
    name_or_path: str | PathLike[str], initial_peers: Sequence[str], options: Mapping[str, Any]
) -> tuple[PreTrainedConfig, SwarmModel, GenerationConfig | None]:
    """What a ``SwarmModelForCausalLM`` is made of. Raises as ``AutoSwarmModelForCausalLM`` says."""
    swarm = SwarmModel.connect(
        model=name_or_path, initial_peers=initial_peers, **_connect_options(dict(options))
    )
    try:
        config, generation = configurations(name_or_path, swarm.core.local)
    except BaseException:
        swarm.close()
        raise
    return config, swarm, generation


def configurations(
    name_or_path: str | PathLike[str], local: LocalModel
) -> tuple[PreTrainedConfig, GenerationConfig | None]:
    """Those that the model came with; for a .gguf file made of what is written in it. None: no settings for
    ``generate`` came with it."""
    if Path(name_or_path).expanduser().is_file():
        return _from_file(local, fspath(name_or_path))
    place = (
        fspath(Path(name_or_path).expanduser()) if Path(name_or_path).expanduser().is_dir() else name_or_path
    )
    config = AutoConfig.from_pretrained(place)
    try:
        return config, GenerationConfig.from_pretrained(place)
    except OSError:  # there is none
        return config, None


def _from_file(local: LocalModel, name: str) -> tuple[PreTrainedConfig, GenerationConfig]:
    model = client_part(local).config
    eos: list[int] = sorted(local.tokenizer.eos_ids)
    config = LlamaConfig(
        name_or_path=name,
        vocab_size=local.vocab_size,
        hidden_size=local.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.n_blocks,
        num_attention_heads=model.n_heads,
        num_key_value_heads=model.n_kv_heads,
        head_dim=model.head_dim,
        rms_norm_eps=model.rms_norm_eps,
        max_position_embeddings=local.context,
        tie_word_embeddings=model.tie_word_embeddings,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": model.rope.theta,
        },  # scaling is the peers' business
        bos_token_id=model.bos_token_id,
        eos_token_id=eos or None,
    )
    return config, GenerationConfig(bos_token_id=model.bos_token_id, eos_token_id=eos or None)


def _connect_options(options: dict[str, Any]) -> dict[str, Any]:
    if "torch_dtype" in options:
        options.setdefault("dtype", options.pop("torch_dtype"))
    if isinstance(dtype := options.get("dtype"), torch.dtype):
        options["dtype"] = str(dtype).removeprefix("torch.")
    if isinstance(device := options.get("device"), torch.device):
        options["device"] = str(device)
    for name in sorted(set(options) - _OPTIONS):
        raise UsageError(
            f"from_pretrained of a swarm has no option {name!r}",
            hint=_HINTS.get(name, f"Options: {', '.join(sorted(_OPTIONS))}."),
        )
    return options
