"""The same GGUF file through transformers, in float32: what our tokens and speeds are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_transformers(path: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of a llama GGUF file, read and dequantized by transformers itself.

    Not ``from_pretrained(gguf_file=...)`` for the weights: that asks for accelerate, for nothing we need.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    model.load_state_dict(weights, strict=False)  # a tied head is not in the file
    model.tie_weights()
    return model.eval(), AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
