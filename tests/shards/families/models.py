"""Random models of transformers, and what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from .cases import CASES, SMALL

TOKENS = 29


def small_model(case: str, **sizes: Any) -> Any:
    """A random one. ``sizes``: what it has otherwise than its case."""
    name = case.split("-")[0]
    torch.manual_seed(len(case))
    config = transformers.AutoConfig.for_model(name, **{**SMALL, **CASES[case], **sizes})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return randomise(model)


def randomise(model: Any) -> Any:
    """``model`` in float32, its weights of a size that lets every part count; norms near one."""
    learned = ("layer_scalar", "correction_bias", "expert_bias")
    buffers = [value for name, value in model.named_buffers() if name.endswith(learned)]
    with torch.no_grad():
        for each in [*model.parameters(), *buffers]:
            if each.ndim < 2:
                each += 0.3 * torch.randn_like(each)
            else:
                each.copy_(torch.randn_like(each) * each.shape[-1] ** -0.5)
    return model.float().eval()


def saved(case: str, folder: Path) -> tuple[Any, Path]:
    model = small_model(case)
    model.save_pretrained(folder)
    return model, folder


def ids(model: Any) -> torch.Tensor:
    return torch.arange(TOKENS).mul(7).remainder(model.config.get_text_config().vocab_size)


def logits(model: Any) -> torch.Tensor:
    """(TOKENS, vocabulary)"""
    with torch.no_grad():
        return model(ids(model)[None]).logits[0]
