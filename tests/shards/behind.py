"""Models with a block behind the last that guesses further tokens, of transformers' blocks and norms put
together as vLLM and llama.cpp read them: transformers itself ignores such tensors."""

from __future__ import annotations

from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from safetensors.numpy import load_file

from .families.gguf_files import write_gguf
from .families.models import ids, randomise, small_model
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
    **{case: {"first_k_dense_replace": 0, "index_topk": 64} for case in ("deepseek_v32", "glm_moe_dsa")},
}
"""Settings of a model whose only block is such a one."""


def following(token: int, vocab: int) -> int:
    """What a model that is made ``plain`` says after ``token``."""
    return (2 * token + 7) % vocab


def plain(model: Any) -> Any:
    """``model`` made to look at the last token alone, as its blocks add nothing: see ``following``."""
    with torch.no_grad():
        for name, each in model.named_parameters():
            if each.ndim == 1:
                each.fill_(1)
            elif any(part in name for part in ("o_proj", "out_proj", "down_proj")):
                each.zero_()
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding.copy_(torch.linalg.qr(torch.randn(embedding.shape[1], len(embedding)))[0].T)
        for token, row in enumerate(embedding):
            head[following(token, len(head))] = row
    return model


class Behind:
    """Such a block of transformers', with two norms and a projection before it, beside ``model``. ``right``:
    it always guesses what a ``plain`` model says."""

    def __init__(self, case: str, model: Any, right: bool = False, **sizes: Any) -> None:
        self.model, self.one = model, small_model(case, num_hidden_layers=1, **ONE[case], **sizes)
        hidden, norm = model.config.hidden_size, type(self.one.model.norm)
        self.norms = [randomise(norm(hidden, model.config.rms_norm_eps)) for _ in range(2)]
        self.projection = randomise(torch.nn.Linear(2 * hidden, hidden, bias=False))
        if right:
            plain(self.one)
            with torch.no_grad():
                for norm in self.norms:
                    norm.weight.fill_(1)
                self.projection.weight.copy_(torch.eye(hidden, 2 * hidden))

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


def with_behind(case: str, folder: Path, *, right: bool = False, **sizes: Any) -> Behind:
    """``sizes``: as of ``small_model``."""
    model = plain(small_model(case, **sizes)) if right else small_model(case, **sizes)
    model.save_pretrained(folder)
    behind, last = Behind(case, model, right, **sizes), f"model.layers.{model.config.num_hidden_layers}."
    block = "mtp.layers.0." if case in QWEN else last
    more = behind.beside("mtp", "mtp.") if case in QWEN else behind.beside("hf", last)
    behind.one.save_pretrained(folder / "one")
    for name, value in load_file(folder / "one" / "model.safetensors").items():
        if name.startswith("model.layers.0."):
            more[name.replace("model.layers.0.", block)] = value
    rmtree(folder / "one")
    if case not in QWEN:  # which the file has twice
        more[f"{last}embed_tokens.weight"] = model.model.embed_tokens.weight.detach().numpy().copy()
    rewritten(folder, lambda tensors: tensors | more, num_nextn_predict_layers=1)
    return behind


def gguf_with_behind(case: str, folder: Path, *, right: bool = False) -> tuple[Behind, Path]:
    model = plain(small_model(case)) if right else small_model(case)
    behind, number = Behind(case, model, right), model.config.num_hidden_layers
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
