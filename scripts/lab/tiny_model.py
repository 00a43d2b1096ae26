"""A random Llama model of a few hundred kilobytes on disk: for swarms that are about processes, not weights.

Its vocabulary is one character a token, so that a stream shows every token at once, and none is held back.
"""

from __future__ import annotations

import json
from pathlib import Path

BLOCKS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB, CONTEXT = 4, 64, 4, 2, 16, 96, 512, 2048
FIRST_CHARACTER = 0x4E00
"""Tokens beyond printable ASCII are the characters from here on: whole, printable, one code point each."""
SPREAD = 2.0
"""Times the usual width of random weights, so that greedy answers wander and do not repeat one token."""


def characters() -> list[str]:
    """Token ``n`` of the vocabulary is the character ``n``; 0 ends a text and is never shown."""
    ascii_ = [chr(code) for code in range(0x20, 0x7F)]
    return ["</s>", *ascii_, *(chr(FIRST_CHARACTER + n) for n in range(VOCAB - 1 - len(ascii_)))]


def write_tiny_model(folder: Path, *, seed: int = 7, blocks: int = BLOCKS) -> Path:
    """Write config.json, model.safetensors (float32) and tokenizer.json; returns ``folder``."""
    write_llama(folder, seed=seed, blocks=blocks)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json of ``characters``, and tokenizer_config.json."""
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {character: n for n, character in enumerate(characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))


def write_llama(
    folder: Path,
    *,
    seed: int = 7,
    blocks: int = BLOCKS,
    vocab: int = VOCAB,
    spread: float = SPREAD,
    tied: bool = False,
    **settings: int,
) -> None:
    """Write config.json with these ``settings`` and model.safetensors (float32). ``spread``: times the usual
    width of random weights. ``tied``: the embedding is the head, too."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * spread * shape[-1] ** -0.5

    tensors = {"model.embed_tokens.weight": weight(vocab, HIDDEN), "model.norm.weight": torch.ones(HIDDEN)}
    if not tied:
        tensors["lm_head.weight"] = weight(vocab, HIDDEN)
    for block in range(blocks):
        prefix = f"model.layers.{block}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": torch.ones(HIDDEN),
            f"{prefix}.post_attention_layernorm.weight": torch.ones(HIDDEN),
            f"{prefix}.self_attn.q_proj.weight": weight(HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": weight(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": weight(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": weight(HIDDEN, HEADS * HEAD_DIM),
            f"{prefix}.mlp.gate_proj.weight": weight(INNER, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": weight(INNER, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": weight(HIDDEN, INNER),
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": blocks,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": vocab,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "eos_token_id": 0,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config | settings))
