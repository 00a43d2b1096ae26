"""The same GGUF file through transformers, in float32: what our tokens and speeds are compared with."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch


def load_transformers(path: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of a GGUF file, read and dequantized by transformers itself."""
    return load_transformers_model(path), load_transformers_tokenizer(path)


def load_transformers_model(path: Path) -> Any:
    """The model of a GGUF file, in float32.

    Not ``from_pretrained(gguf_file=...)`` for the weights: that asks for accelerate, for nothing we need.
    """
    import gguf
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    # transformers opens the file three times, and makes the same map of names for every module of the model.
    with (
        patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)),
        patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
    ):
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        weights = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    model.load_state_dict(weights, strict=False)  # a tied head is not in the file
    model.tie_weights()
    return model.eval()


def load_transformers_tokenizer(path: Path) -> Any:
    """Of a GGUF file. Of SmolLM's kind, each digit is split off, as the original tokenizer.json does:
    transformers reads all byte-level vocabularies in GGUF files that it does not know as GPT-2's."""
    import gguf
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    with patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)):  # opening takes seconds
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        kind = gguf.GGUFReader(str(path)).get_field("tokenizer.ggml.pre")
    if kind is not None and kind.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer
