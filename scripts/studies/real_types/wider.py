"""A Llama whose rows are padded with zeros to a multiple of 256 columns. Its blocks compute what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

MULTIPLE = 256
_OLD = "llama."
_SET_ANEW = (
    *("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv"),
    "attention.layer_norm_rms_epsilon",
)


def write_wider(source: Path, to: Path, blocks: int) -> Path:
    """Writes the first ``blocks`` blocks of the GGUF file ``source`` in float32. Returns ``to``."""
    reader = gguf.GGUFReader(source)

    def value(key: str) -> Any:
        return reader.fields[_OLD + key].contents()

    width, heads, kv_heads = (
        int(value(key)) for key in ("embedding_length", "attention.head_count", "attention.head_count_kv")
    )
    head, group = width // heads, heads // kv_heads
    wide = next(n for n in range(width, 64 * width, head * group) if n % MULTIPLE == 0)
    writer = gguf.GGUFWriter(to, "llama")
    writer.add_block_count(blocks)
    writer.add_embedding_length(wide)
    writer.add_head_count(wide // head)
    writer.add_head_count_kv(wide // head // group)
    writer.add_layer_norm_rms_eps(float(value("attention.layer_norm_rms_epsilon")) * width / wide)
    skipped = {"general.architecture", *(_OLD + key for key in _SET_ANEW)}
    for name, field in reader.fields.items():
        if name not in skipped and not name.startswith("GGUF."):
            item = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], item)
    for tensor in reader.tensors:
        if not tensor.name.startswith("blk.") or int(tensor.name.split(".")[1]) < blocks:
            values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            writer.add_tensor(tensor.name, _widened(tensor.name, values, width, wide, wide // group))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


def _widened(name: str, values: np.ndarray, width: int, wide: int, kv_wide: int) -> np.ndarray:
    """A norm's weights make up for the mean of squares, which is over more columns."""
    if "norm" in name:
        values = values * np.float32((width / wide) ** 0.5)
    if ".attn_k." in name or ".attn_v." in name:
        sizes = (kv_wide, wide)
    else:
        sizes = tuple(wide if size == width else size for size in values.shape)
    if name == "token_embd.weight":
        sizes = (values.shape[0], wide)
    return np.pad(values, [(0, new - old) for new, old in zip(sizes, values.shape, strict=True)])
