"""Random models of a few hundred kilobytes on disk: for swarms that are about processes, not weights.

Its vocabulary is one character a token, so that a stream shows every token at once, and none is held back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

BLOCKS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB, CONTEXT = 4, 64, 4, 2, 16, 96, 512, 2048
TAPS = 4
FIRST_CHARACTER = 0x4E00
"""Tokens beyond printable ASCII are the characters from here on: whole, printable, one code point each."""
CHAT = "{% for message in messages %}{{ message.content }} {% endfor %}"
SPREAD = 2.0
"""Times the usual width of random weights, so that greedy answers wander and do not repeat one token."""


def characters() -> list[str]:
    """Token ``n`` of the vocabulary is the character ``n``; 0 ends a text and is never shown."""
    ascii_ = [chr(code) for code in range(0x20, 0x7F)]
    return ["</s>", *ascii_, *(chr(FIRST_CHARACTER + n) for n in range(VOCAB - 1 - len(ascii_)))]


def write_tiny_model(folder: Path, *, seed: int = 7, blocks: int = BLOCKS, wrong: float = 0.0) -> Path:
    """Write config.json, model.safetensors (float32) and tokenizer.json; returns ``folder``. ``wrong``:
    weights differ by this part of their width from those of the same seed, so that this model guesses what
    that one says, and errs."""
    write_llama(folder, seed=seed, blocks=blocks, wrong=wrong)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path, **settings: str) -> None:
    """tokenizer.json of ``characters``, and tokenizer_config.json with these ``settings``."""
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {character: n for n, character in enumerate(characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", **settings}))


def write_llama(
    folder: Path,
    *,
    seed: int = 7,
    blocks: int = BLOCKS,
    vocab: int = VOCAB,
    spread: float = SPREAD,
    tied: bool = False,
    wrong: float = 0.0,
    **settings: int,
) -> None:
    """Write config.json with these ``settings`` and model.safetensors (float32). ``spread``: times the usual
    width of random weights. ``tied``: the embedding is the head, too."""
    weights = _Weights(seed, spread, wrong)
    tensors = weights.of_client(vocab, tied=tied)
    for block in range(blocks):
        tensors |= weights.of_attention(block, queries=HEADS * HEAD_DIM) | weights.of_mlp(block)
    _write(
        folder,
        tensors,
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": blocks,
            "vocab_size": vocab,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": tied,
            **settings,
        },
    )


def write_tiny_hybrid(
    folder: Path,
    *,
    seed: int = 7,
    blocks: int = BLOCKS,
    wrong: float = 0.0,
    attends: int = 2,
    **settings: int,
) -> Path:
    """As ``write_tiny_model``, of Qwen 3.5's family: blocks keep a state (Gated DeltaNet) in the place of
    keys and values, but for the last one of every ``attends``; 0: all do. ``settings``: of config.json."""
    weights = _Weights(seed, SPREAD, wrong, norm=0.0)  # its files have norms' weights less 1
    tensors = weights.of_client(VOCAB, tied=False)
    kinds = [
        "full_attention" if attends and not (block + 1) % attends else "linear_attention"
        for block in range(blocks)
    ]
    for block, kind in enumerate(kinds):
        if kind == "full_attention":
            tensors |= weights.of_attention(block, queries=2 * HEADS * HEAD_DIM)  # and the gate
            tensors |= weights.of_head_norms(block)
        else:
            tensors |= weights.of_delta_net(block)
        tensors |= weights.of_mlp(block)
    _write(
        folder,
        tensors,
        {
            "architectures": ["Qwen3_5ForCausalLM"],
            "model_type": "qwen3_5_text",
            "num_hidden_layers": blocks,
            "layer_types": kinds,
            "vocab_size": VOCAB,
            "rms_norm_eps": 1e-6,
            "linear_num_key_heads": KV_HEADS,
            "linear_num_value_heads": HEADS,
            "linear_key_head_dim": HEAD_DIM,
            "linear_value_head_dim": HEAD_DIM,
            "linear_conv_kernel_dim": TAPS,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 1, 1],
            },
            "tie_word_embeddings": False,
            **settings,
        },
    )
    write_tokenizer(folder, chat_template=CHAT)
    return folder


class _Weights:
    """Random tensors by HuggingFace's names. ``norm``: the weight of every norm of rows."""

    def __init__(self, seed: int, spread: float, wrong: float, norm: float = 1.0) -> None:
        import torch

        self._generator = torch.Generator().manual_seed(seed)
        self._errors = torch.Generator().manual_seed(seed + 1)
        self._spread, self._wrong, self._norm = spread, wrong, norm

    def of_client(self, vocab: int, *, tied: bool) -> Tensors:
        tensors = {"model.embed_tokens.weight": self._random(vocab, HIDDEN)}
        tensors["model.norm.weight"] = self._full(HIDDEN, self._norm)
        return tensors if tied else tensors | {"lm_head.weight": self._random(vocab, HIDDEN)}

    def of_attention(self, block: int, queries: int) -> Tensors:
        sizes = {"q": queries, "k": KV_HEADS * HEAD_DIM, "v": KV_HEADS * HEAD_DIM}
        parts = {f"{part}_proj": self._random(size, HIDDEN) for part, size in sizes.items()}
        return _named(block, "self_attn", parts | {"o_proj": self._random(HIDDEN, HEADS * HEAD_DIM)})

    def of_head_norms(self, block: int) -> Tensors:
        norms = {part: self._full(HEAD_DIM, self._norm) for part in ("q_norm", "k_norm")}
        return _named(block, "self_attn", norms)

    def of_delta_net(self, block: int) -> Tensors:
        """Heads that forget in a few to some hundred tokens."""
        channels = (2 * KV_HEADS + HEADS) * HEAD_DIM
        inner = HEADS * HEAD_DIM
        parts = {
            "in_proj_qkv": self._random(channels, HIDDEN),
            "in_proj_z": self._random(inner, HIDDEN),
            "in_proj_b": self._random(HEADS, HIDDEN),
            "in_proj_a": self._random(HEADS, HIDDEN),
            "conv1d": self._random(channels, 1, TAPS),
            "norm": self._full(HEAD_DIM, 1.0),
            "out_proj": self._random(HIDDEN, inner),
        }
        whole = {"A_log": self._full(HEADS, -1.0), "dt_bias": self._random(HEADS, 1)[:, 0] - 2}
        prefix = f"model.layers.{block}.linear_attn"
        return _named(block, "linear_attn", parts) | {
            f"{prefix}.{name}": made for name, made in whole.items()
        }

    def of_mlp(self, block: int) -> Tensors:
        """And the norms of the block."""
        norms = ("input_layernorm", "post_attention_layernorm")
        made = {f"model.layers.{block}.{name}.weight": self._full(HIDDEN, self._norm) for name in norms}
        return made | _named(
            block,
            "mlp",
            {
                "gate_proj": self._random(INNER, HIDDEN),
                "up_proj": self._random(INNER, HIDDEN),
                "down_proj": self._random(HIDDEN, INNER),
            },
        )

    def _random(self, *shape: int) -> torch.Tensor:
        import torch

        values = torch.randn(shape, generator=self._generator)
        if self._wrong:
            values = values + self._wrong * torch.randn(shape, generator=self._errors)
        return values * self._spread * shape[-1] ** -0.5

    def _full(self, size: int, value: float) -> torch.Tensor:
        import torch

        return torch.full((size,), value)


def _named(block: int, part: str, tensors: Tensors) -> Tensors:
    return {f"model.layers.{block}.{part}.{name}.weight": tensor for name, tensor in tensors.items()}


def _write(folder: Path, tensors: Tensors, config: dict[str, Any]) -> None:
    """model.safetensors and config.json; what all models here have in common is not in ``config``."""
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    common = {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "silu",
        "eos_token_id": 0,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(common | config))
