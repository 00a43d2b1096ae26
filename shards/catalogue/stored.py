"""Which tensors a model's files have, and how many bytes of each: computed from the figures of its shape.

Of llama.cpp's mixtures the rules are those of its ``quantize`` tool; a file of another maker may differ by
some per cent. What a kind of block takes is computed once, since most blocks of a model are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import TypeVar

from ..formats.config import ModelConfig
from ..formats.qtypes import float8_qtype, row_bytes
from ..formats.tensors import EMBEDDING, HEAD, TensorInfo, block_tensors, client_tensors, for_each_kind

T = TypeVar("T")

NATIVE = {"fp8": "FP8", "mxfp4": "MXFP4", None: "BF16"}
"""What the maker's own files are called, by the quantization of their configuration."""
MIXTURES = ("Q4_K_M", "Q8_0")
"""Those of llama.cpp that are known here."""
_FLOAT8_GROUP = 128
_FINER = ("self_attn.v_proj.weight", "mlp.down_proj.weight")
"""Which matrices of some blocks Q4_K_M holds in six bits; so it does with those of experts."""
_TAPS = tuple(f".state.{name}conv.weight" for name in ("", "q_", "k_", "v_"))
_COARSE = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
"""What llama.cpp takes where rows do not divide into groups of 256."""


def native_of(config: ModelConfig) -> str:
    """The name of the type of the maker's own files."""
    return NATIVE[config.quantization.method if config.quantization else None]


def manifest(config: ModelConfig, kind: str) -> dict[str, TensorInfo]:
    """All tensors of files of ``kind``: one of MIXTURES, or ``native_of(config)``."""
    shapes = client_tensors(config)
    found = {
        name: _info(name, shape, _client_qtype(config, kind, name, shape)) for name, shape in shapes.items()
    }
    for block, tensors in enumerate(_for_each_block(config, kind, lambda tensors: tensors)):
        for own, info in tensors.items():
            name = f"model.layers.{block}.{own}"
            found[name] = TensorInfo(name, info.shape, info.qtype, info.nbytes)
    return found


def block_bytes(config: ModelConfig, kind: str) -> list[int]:
    """Of each block's weights in files of ``kind``."""
    return _for_each_block(config, kind, lambda tensors: sum(info.nbytes for info in tensors.values()))


def client_bytes(config: ModelConfig, kind: str) -> int:
    """Of embedding, norm, head and what else only clients read."""
    return sum(
        _info(name, shape, _client_qtype(config, kind, name, shape)).nbytes
        for name, shape in client_tensors(config).items()
    )


def parameters(config: ModelConfig) -> int:
    """All of the text part. Makers may count what guesses further tokens, or sees and hears, as well."""
    blocks = for_each_kind(config, lambda block: sum(map(prod, block_tensors(config, block).values())))
    return sum(map(prod, client_tensors(config).values())) + sum(blocks)


def _for_each_block(config: ModelConfig, kind: str, of: Callable[[Mapping[str, TensorInfo]], T]) -> list[T]:
    """``of`` the tensors of each block."""
    return for_each_kind(
        config, lambda block: of(_block(config, block, kind)), lambda block: _is_finer(block, config.n_blocks)
    )


def _block(config: ModelConfig, block: int, kind: str) -> Mapping[str, TensorInfo]:
    """By names without ``model.layers.N``."""
    finer = _is_finer(block, config.n_blocks)
    return {
        _own_name(name): _info(name, shape, _block_qtype(kind, name, shape, finer))
        for name, shape in block_tensors(config, block).items()
    }


def _own_name(name: str) -> str:
    """Without ``model.layers.N``."""
    return name.split(".", 3)[3]


def _is_finer(block: int, blocks: int) -> bool:
    """Whether Q4_K_M holds more bits of this block, as of those of the first and the last eighth."""
    eighth = blocks // 8
    return block < eighth or block >= 7 * blocks // 8 or (block - eighth) % 3 == 2


def _block_qtype(kind: str, name: str, shape: tuple[int, ...], finer: bool) -> str:
    is_matrix, is_router = len(shape) > 1, ".mlp.router." in name
    if kind in MIXTURES:
        if not is_matrix or is_router or name.endswith(_TAPS):
            return "F32"
        own = _own_name(name)
        is_fine = finer and (own in _FINER or (own.startswith("mlp.") and own.endswith("down_proj.weight")))
        return _fitting("Q6_K" if is_fine else "Q4_K", shape) if kind == "Q4_K_M" else _fitting(kind, shape)
    if kind == "MXFP4":
        return "MXFP4" if ".mlp.experts." in name and is_matrix else "BF16"
    return float8_qtype(_FLOAT8_GROUP) if kind == "FP8" and is_matrix and not is_router else "BF16"


def _client_qtype(config: ModelConfig, kind: str, name: str, shape: tuple[int, ...]) -> str:
    if kind not in MIXTURES:
        return "BF16"
    if len(shape) == 1:
        return "F32"
    is_head = name == HEAD or (name == EMBEDDING and config.tie_word_embeddings)
    return _fitting(kind if kind == "Q8_0" else "Q6_K" if is_head else "Q4_K", shape)


def _fitting(qtype: str, shape: tuple[int, ...]) -> str:
    """``qtype``, or what stands for it where its groups do not fit into a row."""
    if shape[-1] % 256 and qtype in _COARSE:
        qtype = _COARSE[qtype]
    return qtype if shape[-1] % 32 == 0 else "F16"


def _info(name: str, shape: tuple[int, ...], qtype: str) -> TensorInfo:
    *rows, cols = shape
    return TensorInfo(name, shape, qtype, prod(rows) * row_bytes(qtype, cols))
