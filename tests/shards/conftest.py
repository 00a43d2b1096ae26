"""Small Llama checkpoints on disk, in both formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from swarm_node.shards.hf_config import hf_config
from swarm_node.shards.kv_pool import PAGE_TOKENS, KvPool, Piece
from swarm_node.shards.manifest import model_tensors
from swarm_node.shards.span_model import SpanModel
from swarm_node.swarm.types import Span

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HFLlama = Callable[..., Path]
GGUFLlama = Callable[..., Path]


class Sessions:
    """Sequences fed to a span, their pages scattered over the slots of one pool.

    Memory starts as NaN (int8: as large numbers), so that reading what nobody wrote shows.
    """

    def __init__(
        self, model: SpanModel, count: int = 1, tokens: int = 64, kv_dtype: str = "float32", seed: int = 0
    ) -> None:
        config, blocks, pages = model.config, len(model.span), -(-tokens // PAGE_TOKENS)
        used = count * blocks * pages
        order = torch.randperm(used + 5, generator=torch.Generator().manual_seed(seed))[:used]
        self.model = model
        self.tables = order.to(torch.int32).view(count, blocks, pages)
        self.pool = KvPool(used + 5, config.n_kv_heads, config.head_dim, kv_dtype, torch.device("cpu"))
        self.pool.data.fill_(100 if kv_dtype == "int8" else float("nan"))
        if self.pool.scales is not None:
            self.pool.scales.fill_(float("nan"))
        self.lengths = [0] * count

    def forward(
        self, x: torch.Tensor, steps: Sequence[tuple[int, int]] = (), span: Span | None = None
    ) -> torch.Tensor:
        """``steps``: (session, tokens), in the order of ``x``'s rows; none: all for session 0."""
        pieces, row = [], 0
        for session, count in steps or [(0, len(x))]:
            start = self.lengths[session]
            pieces.append(Piece(self.tables[session], self.model.span.start, row, start, count))
            self.lengths[session] += count
            row += count
        return self.model.forward(x, pieces, self.pool, span)


@pytest.fixture(scope="session")
def sessions() -> type[Sessions]:
    return Sessions


@pytest.fixture(scope="session")
def hf_llama_in() -> HFLlama:
    """``hf_llama_in(parent, name="tiny", shards=1, ...)``: as ``hf_llama``, in the folder ``parent``."""

    def write(
        parent: Path,
        name: str = "tiny",
        *,
        shards: int = 1,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        scale: Callable[[int], float] = lambda cols: 1.0,
        **changes: Any,
    ) -> Path:
        directory = parent / name
        directory.mkdir()
        document = {**TINY, **changes}
        (directory / "config.json").write_text(json.dumps(document))
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            tensor: (torch.randn(shape, generator=generator) * scale(shape[-1])).to(dtype)
            for tensor, shape in model_tensors(hf_config(document, {}, "test")).items()
        }
        if shards == 1:
            save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
            return directory
        parts: list[dict[str, torch.Tensor]] = [{} for _ in range(shards)]
        for tensor, value in tensors.items():
            block = int(tensor.split(".")[2]) if tensor.startswith("model.layers.") else None
            part = shards - 1 if block is None else block * (shards - 1) // document["num_hidden_layers"]
            parts[part][tensor] = value
        weight_map: dict[str, str] = {}
        for index, part_tensors in enumerate(parts):
            file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
            save_file(part_tensors, directory / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part_tensors, file)
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return directory

    return write


@pytest.fixture
def hf_llama(tmp_path: Path, hf_llama_in: HFLlama) -> HFLlama:
    """``hf_llama(name="tiny", shards=1, seed=0, dtype=..., scale=..., **config)`` → a folder, random weights.

    ``scale(columns)``: what standard normal values are multiplied by.
    """
    return partial(hf_llama_in, tmp_path)


@pytest.fixture
def gguf_llama(tmp_path: Path) -> GGUFLlama:
    """``gguf_llama(qtype="F32", tied=True, extra=None)`` → a GGUF file of 2 blocks, as converters write it.

    Hidden 256 and intermediate 512, so that K-quant groups fit. ``extra(writer)`` may add keys and tensors.
    """

    def write(
        qtype: str = "F32",
        *,
        tied: bool = True,
        seed: int = 0,
        extra: Callable[[gguf.GGUFWriter], None] | None = None,
        heads: tuple[int, int] = (4, 2),
        name: str = "tiny.gguf",
        bias: bool = False,
    ) -> Path:
        path = tmp_path / name
        writer = gguf.GGUFWriter(str(path), "llama")
        writer.add_block_count(2)
        writer.add_context_length(128)
        writer.add_embedding_length(256)
        writer.add_feed_forward_length(512)
        writer.add_head_count(heads[0])
        writer.add_head_count_kv(heads[1])
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(256 // heads[0])
        writer.add_rope_freq_base(10000.0)
        add_vocabulary(writer)
        if extra is not None:
            extra(writer)
        rng = np.random.default_rng(seed)
        kv = 256 * heads[1] // heads[0]
        matrices = {"token_embd": (50, 256)} | ({} if tied else {"output": (50, 256)})
        vectors = {"output_norm": 256}
        for block in range(2):
            prefix = f"blk.{block}."
            matrices |= {
                prefix + "attn_q": (256, 256),
                prefix + "attn_k": (kv, 256),
                prefix + "attn_v": (kv, 256),
                prefix + "attn_output": (256, 256),
                prefix + "ffn_gate": (512, 256),
                prefix + "ffn_up": (512, 256),
                prefix + "ffn_down": (256, 512),
            }
            vectors |= {prefix + "attn_norm": 256, prefix + "ffn_norm": 256}
        for tensor, size in vectors.items():
            writer.add_tensor(f"{tensor}.weight", rng.standard_normal(size, dtype=np.float32))
        if bias:
            writer.add_tensor("blk.0.attn_q.bias", np.arange(256, dtype=np.float32))
        for tensor, shape in matrices.items():
            raw = raw_values(rng, shape, qtype)
            writer.add_tensor(f"{tensor}.weight", raw, raw_dtype=gguf.GGMLQuantizationType[qtype])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """50 tokens of a SentencePiece-like vocabulary."""
    tokens = ["<unk>", "<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "ab", "▁ab"]
    tokens += [f"<0x{byte:02X}>" for byte in range(50 - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(50)])
    writer.add_token_types([2, 3, 3] + [1] * 30 + [6] * 17)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def raw_values(rng: np.random.Generator, shape: tuple[int, int], qtype: str) -> np.ndarray:
    """Random weights of a type. K-quants, which gguf cannot make: random groups, sane scales."""
    kind = gguf.GGMLQuantizationType[qtype]
    values = rng.standard_normal(shape, dtype=np.float32)
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        pass
    group, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (shape[0], shape[1] // group, size), dtype=np.uint8)
    scales = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
    scales |= {"IQ4_NL": (0,), "IQ4_XS": (0,)}
    for offset in scales[qtype]:
        half = rng.uniform(-0.1, 0.1, raw.shape[:2]).astype(np.float16)
        raw[..., offset : offset + 2] = half[..., None].view(np.uint8)
    return raw.reshape(shape[0], -1)
