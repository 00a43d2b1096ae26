"""Tensors of a GGUF file under HuggingFace's Llama names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ....swarm.errors import CheckpointError
from ..config import ModelConfig
from ..mapped_file import MappedFile, PresentBytes
from ..raw_tensor import RawTensor
from ..tensors import EMBEDDING, FINAL_NORM, HEAD, TensorInfo, check_manifest, refuse_unread
from .config import READ_WITH_METADATA, gguf_config
from .header import GGUFHeader, GGUFTensor

_TOP = {"token_embd": EMBEDDING, "output_norm": FINAL_NORM, "output": HEAD}
_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]{0,3})\.([a-z_]+)")
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GGUFSource:
    """``header`` and ``config`` of the file, and its tensors. Reads nothing but the header when opened."""

    def __init__(self, path: Path, presence: PresentBytes | None = None) -> None:
        """``presence``: which bytes are there, where not all are."""
        self.file = MappedFile(path, presence)
        self.header = GGUFHeader(self.file)
        self.config: ModelConfig = gguf_config(self.header)
        self._tensors: dict[str, GGUFTensor] = {}
        for tensor in self.header.tensors.values():
            if (name := _huggingface_name(tensor.name)) is not None:
                self._tensors[name] = tensor
        self.manifest: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, tensor.shape, tensor.qtype, tensor.nbytes)
            for name, tensor in self._tensors.items()
        }
        check_manifest(self.manifest, self.config, str(path), bias_optional=True)
        known = {tensor.name for tensor in self._tensors.values()}
        refuse_unread(self.header.tensors.keys() - known - READ_WITH_METADATA, str(path))

    def tensor(self, name: str) -> RawTensor:
        tensor = self._find(name)
        stored = self.file.slice(tensor.offset, tensor.nbytes)
        attention = self.config.blocks[0].attention
        heads = {"q_proj": attention.heads, "k_proj": attention.kv_heads}.get(name.split(".")[-2])
        if heads is None:
            rows = 1 if len(tensor.shape) == 1 else tensor.shape[0]
            return RawTensor(
                name, tensor.shape, tensor.qtype, stored.reshape(rows, -1), check=self.file.check
            )
        order = _rotary_order(heads, attention.head_dim)
        if len(tensor.shape) == 2:
            return RawTensor(name, tensor.shape, tensor.qtype, stored.reshape(tensor.shape[0], -1), order)
        # A bias has one row; it is small, so its values are put in order here.
        values = stored.reshape(tensor.shape[0], -1)[order]
        return RawTensor(name, tensor.shape, tensor.qtype, values.reshape(1, -1))

    def place(self, name: str) -> tuple[Path, int, int]:
        """Where a tensor's bytes lie: file, offset, length. CheckpointError for a name that is not there."""
        tensor = self._find(name)
        return self.file.path, tensor.offset, tensor.nbytes

    def release(self) -> None:
        self.file.release()

    def close(self) -> None:
        self.file.close()

    def _find(self, name: str) -> GGUFTensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.file.path} has no tensor {name}") from None


def _huggingface_name(name: str) -> str | None:
    """None for tensors that we do not use as weights, such as ``rope_freqs.weight``."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return _TOP[stem] if kind == "weight" else None
    found = _BLOCK.fullmatch(stem)
    if found is None or found[2] not in _IN_BLOCK:
        return None
    if kind != "weight" and (kind != "bias" or found[2].endswith("norm")):
        return None
    return f"model.layers.{found[1]}.{_IN_BLOCK[found[2]]}.{kind}"


def _rotary_order(heads: int, head_dim: int) -> np.ndarray:
    """Which stored row is HuggingFace's row i of q or k.

    llama.cpp rotates neighbours (0, 1), (2, 3), …, HuggingFace halves (0, dim/2), (1, dim/2 + 1), …; the
    converter therefore interleaves the two halves of each head's rows. Whole rows move, so quantized ones
    need no decoding.
    """
    rows = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2)
    return rows.swapaxes(1, 2).reshape(-1)
