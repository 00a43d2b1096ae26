"""Small llama GGUF files, written as converters do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import gguf
import numpy as np

from swarm_node.shards.formats.dequantize import _LAYOUTS

WRITTEN = frozenset(gguf.GGMLQuantizationType.__members__)
"""The types that the package can write into a file; Q2_0 is newer."""


def write_gguf_llama(
    folder: Path,
    qtype: str = "F32",
    *,
    tied: bool = True,
    seed: int = 0,
    extra: Callable[[gguf.GGUFWriter], None] | None = None,
    heads: tuple[int, int] = (4, 2),
    name: str = "tiny.gguf",
    bias: bool = False,
    others: Mapping[str, str] | None = None,
    blocks: int = 2,
    split: int = 0,
    first_without_tensors: bool = False,
) -> Path:
    """A GGUF file, random weights; hidden 256 and intermediate 512, so that K-quant groups fit.
    ``extra(writer)`` may add keys and tensors. ``others``: types of matrices by the ends of their names.
    ``split``: into files of at most so many tensors; the first of them is returned, and has none if
    ``first_without_tensors``."""
    path = folder / name
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split, small_first_shard=first_without_tensors)
    writer.add_block_count(blocks)
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
    kv = 256 * heads[1] // heads[0]
    matrices = {"token_embd": (50, 256)} | ({} if tied else {"output": (50, 256)})
    vectors = {"output_norm": 256}
    for block in range(blocks):
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
    types = {
        tensor: next((other for end, other in (others or {}).items() if tensor.endswith(end)), qtype)
        for tensor in matrices
    }
    kinds = zip(matrices.values(), types.values(), strict=True)
    norms, weights = _random_tensors(seed, tuple(vectors.values()), tuple(kinds))
    for tensor, values in zip(vectors, norms, strict=True):
        writer.add_tensor(f"{tensor}.weight", values)
    if bias:
        writer.add_tensor("blk.0.attn_q.bias", np.arange(256, dtype=np.float32))
    for (tensor, held), raw in zip(types.items(), weights, strict=True):
        writer.add_tensor(f"{tensor}.weight", raw, raw_dtype=gguf.GGMLQuantizationType[held])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if path.is_file() else min(path.parent.glob(f"{path.stem}-*-of-*.gguf"))


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


@lru_cache(maxsize=16)
def _random_tensors(
    seed: int, sizes: tuple[int, ...], kinds: tuple[tuple[tuple[int, int], str], ...]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Vectors of ``sizes``, and matrices of shapes and types. Quantizing takes longer than what most tests do
    with a file, and many write the same one."""
    rng = np.random.default_rng(seed)
    vectors = [rng.standard_normal(size, dtype=np.float32) for size in sizes]
    return vectors, [raw_values(rng, shape, qtype) for shape, qtype in kinds]


def raw_values(rng: np.random.Generator, shape: tuple[int, int], qtype: str) -> np.ndarray:
    """Random weights of a type. What gguf cannot make: random groups, sane scales."""
    values = rng.standard_normal(shape, dtype=np.float32)
    try:
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType[qtype])
    except (KeyError, NotImplementedError):
        pass
    layout, group = _LAYOUTS[qtype]
    raw = rng.integers(0, 256, (shape[0], shape[1] // group, layout.itemsize), dtype=np.uint8)
    scales = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
    for offset in scales.get(qtype, (0,)):
        half = rng.uniform(-0.1, 0.1, raw.shape[:2]).astype(np.float16)[..., None]
        if qtype == "IQ1_M":  # it lies in the upper four bits of four words
            nibbles = half.view(np.uint16) >> np.array([0, 4, 8, 12], np.uint16) & 15
            raw[..., -7::2] = raw[..., -7::2] & 15 | nibbles << 4
        else:
            raw[..., offset : offset + 2] = half.view(np.uint8)
    return raw.reshape(shape[0], -1)
