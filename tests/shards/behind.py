"""Models with a block behind the last that guesses further tokens, of transformers' blocks and norms put
together as vLLM and llama.cpp read them: transformers itself ignores such tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file

from .families.gguf_files import write_gguf
from .families.models import ids, randomise, saved, small_model
from .families.test_layouts import Tensors, changed, rewritten

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
