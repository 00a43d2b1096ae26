"""Matrices as quantizers of HuggingFace checkpoints write them, packed by the formats' definitions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Written = tuple[Tensors, torch.Tensor]
"""What is stored in the place of a matrix, and the values that it then has, float32."""
Write = Callable[[str, torch.Tensor], Written]
"""By the matrix's name without ``.weight``."""

NF4 = torch.tensor(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453]
    + [-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0]
    + [0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
    + [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)
FP4 = torch.tensor([0.0, 1 / 192, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12])
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight rows the first, second … four bits of a word belong to."""


@dataclass(frozen=True)
class Quantizer:
    """``settings``: the quantization_config. ``takes``: of a matrix, whether it is quantized."""

    settings: dict[str, Any]
    write: Write
    takes: Callable[[str, torch.Tensor], bool] = field(
        default=lambda name, value: value.ndim == 2 and value.shape[1] % 32 == 0 and value.shape[0] % 8 == 0
    )


def words(digits: np.ndarray) -> np.ndarray:
    """0s and 1s (..., n), the lowest first → int32 (..., n / 32)."""
    padded = np.pad(digits, [(0, 0)] * (digits.ndim - 1) + [(0, -digits.shape[-1] % 32)])
    return np.packbits(padded.astype(np.uint8), axis=-1, bitorder="little").view(np.int32)


def packed(q: torch.Tensor, bits: int) -> np.ndarray:
    """Integers (..., n) as one string of bits: int32 (..., ceil(n * bits / 32))."""
    digits = (q.numpy().astype(np.int64)[..., None] >> np.arange(bits)) & 1
    return words(digits.reshape(*q.shape[:-1], -1))


def rounded(
    value: torch.Tensor, bits: int, group: int, symmetric: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Integers from 0 up (rows, cols), scales and zero points (rows, groups)."""
    grouped = value.unflatten(1, (-1, group))
    low, high = grouped.amin(-1), grouped.amax(-1)
    most = 2**bits - 1
    if symmetric:
        scale = (2 * grouped.abs().amax(-1) / most).to(dtype)
        zero = torch.full_like(low, 2 ** (bits - 1))
    else:
        scale = ((high.clamp(min=0) - low.clamp(max=0)) / most).to(dtype)
        zero = (-low / scale.float()).round().clamp(1, most)
    q = (grouped / scale.float()[..., None] + zero[..., None]).round().clamp(0, most)
    return q.flatten(1).int(), scale, zero.int()


def spread(per_group: torch.Tensor, cols: int) -> torch.Tensor:
    return per_group.float().repeat_interleave(cols // per_group.shape[1], 1)


def gptq(
    bits: int = 4, group: int = 32, *, symmetric: bool = True, v2: bool = False, mixed: bool = False
) -> Quantizer:
    """``mixed``: groups of columns that are not neighbours. ``group`` -1: one a row."""

    def write(stem: str, value: torch.Tensor) -> Written:
        cols = value.shape[1]
        size = cols if group < 0 else group
        order = (
            torch.randperm(cols, generator=torch.Generator().manual_seed(7)) if mixed else torch.arange(cols)
        )
        q, scale, zero = rounded(value[:, order], bits, size, symmetric, torch.float16)
        values = (q - spread(zero, cols)) * spread(scale, cols)
        back = order.argsort()
        stored = {
            "qweight": packed(q[:, back], bits).T,
            "qzeros": packed((zero.T - (0 if v2 else 1)) % 2**bits, bits),
            "scales": scale.T,
            "g_idx": (torch.arange(cols) // size)[back].int(),
            "bias": torch.zeros(len(value), dtype=torch.float16),
        }
        return named(stem, stored), values[:, back]

    settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric}
    settings |= {"desc_act": mixed, "checkpoint_format": "gptq_v2" if v2 else "gptq", "damp_percent": 0.1}
    return Quantizer(settings, write)


def awq(group: int = 32) -> Quantizer:
    def packed_across(q: torch.Tensor) -> np.ndarray:
        """(n, rows) → (n, rows / 8)"""
        return packed(q.unflatten(1, (-1, 8))[..., list(AWQ_ORDER)].flatten(1), 4)

    def write(stem: str, value: torch.Tensor) -> Written:
        cols = value.shape[1]
        q, scale, zero = rounded(value, 4, cols if group < 0 else group, False, torch.float16)
        values = (q - spread(zero, cols)) * spread(scale, cols)
        stored = {"qweight": packed_across(q.T), "qzeros": packed_across(zero.T), "scales": scale.T}
        return named(stem, stored), values

    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    return Quantizer(settings | {"modules_to_not_convert": ["lm_head"]}, write)


def compressed(form: str, weights: dict[str, Any], write: Write, takes: Any = None) -> Quantizer:
    group = {"targets": ["Linear"], "weights": {"dynamic": False, "observer": "minmax", **weights}}
    group |= {"input_activations": None, "output_activations": None}
    settings = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    settings |= {"ignore": ["lm_head", "re:.*gate$"], "quantization_status": "compressed"}
    return Quantizer(settings, write, *(() if takes is None else (takes,)))


def pack_quantized(
    bits: int = 4, group: int = 32, *, symmetric: bool = True, mixed: bool = False
) -> Quantizer:
    def write(stem: str, value: torch.Tensor) -> Written:
        rows, cols = value.shape
        size = cols if group < 0 else group
        order = (
            torch.randperm(cols, generator=torch.Generator().manual_seed(3)) if mixed else torch.arange(cols)
        )
        q, scale, zero = rounded(value[:, order], bits, size, symmetric, torch.bfloat16)
        back = order.argsort()
        values = ((q - spread(zero, cols)) * spread(scale, cols))[:, back]
        stored = {
            "weight_packed": packed(q[:, back], bits),
            "weight_scale": scale,
            "weight_shape": torch.tensor([rows, cols]),
        }
        if not symmetric:
            stored["weight_zero_point"] = packed(zero.T, bits).T
        if mixed:
            stored["weight_g_idx"] = (torch.arange(cols) // size)[back].int()
        return named(stem, stored), values

    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "group_size": None if group < 0 else group,
    }
    weights |= {"strategy": "channel" if group < 0 else "group", "actorder": "group" if mixed else None}
    return compressed("pack-quantized", weights, write)


def int_quantized(strategy: str = "channel", *, symmetric: bool = True) -> Quantizer:
    def write(stem: str, value: torch.Tensor) -> Written:
        q, scale, zero = rounded(value, 8, value.shape[1], symmetric, torch.bfloat16)
        if strategy == "tensor":
            scale = (value.abs().amax() / 127).bfloat16().reshape(1)
            q = (value / scale.float()).round().clamp(-128, 127).int() + 128
            zero = torch.tensor([[128]])
        values = (q - zero) * scale.float().reshape(-1, 1)
        stored = {"weight": (q - 128).to(torch.int8), "weight_scale": scale}
        if not symmetric:
            stored["weight_zero_point"] = (zero - 128).to(torch.int8)
        return named(stem, stored), values

    weights = {"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": strategy}
    return compressed("int-quantized", weights, write)


def float8(
    strategy: str,
    block: tuple[int, int] = (128, 128),
    group: int = 64,
    dtype: torch.dtype = torch.float32,
    held: torch.dtype = torch.float8_e4m3fn,
) -> tuple[Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]], Any]:
    """Bytes, scales and values of a matrix."""

    def scaled(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows, cols = value.shape
        size = {"tensor": (rows, cols), "channel": (1, cols), "group": (1, group), "block": block}[strategy]
        tall, wide = -(-rows // size[0]), -(-cols // size[1])
        padded = torch.zeros(tall * size[0], wide * size[1])
        padded[:rows, :cols] = value
        blocks = padded.reshape(tall, size[0], wide, size[1])
        scale = (blocks.abs().amax((1, 3)) / torch.finfo(held).max).clamp(min=1e-12)
        scale = scale.log2().ceil().exp2() if dtype == torch.float8_e8m0fnu else scale.to(dtype).float()
        every = scale.repeat_interleave(size[0], 0).repeat_interleave(size[1], 1)[:rows, :cols]
        q = (value / every).to(held)
        if strategy == "tensor":
            scale = scale.reshape(1)
        return q, scale.to(dtype), q.float() * every

    return scaled, block


def float_quantized(strategy: str = "channel") -> Quantizer:
    scaled, block = float8(strategy, (64, 32), dtype=torch.bfloat16)

    def write(stem: str, value: torch.Tensor) -> Written:
        q, scale, values = scaled(value)
        stored = {"weight": q, "weight_scale": scale, "input_scale": torch.ones(1)}
        return named(stem, stored), values

    weights: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy}
    weights["group_size"] = 64 if strategy == "group" else None
    weights["block_structure"] = list(block) if strategy == "block" else None
    return compressed("float-quantized", weights, write)


def fp8(
    block: tuple[int, int] | None = (128, 128),
    dtype: torch.dtype = torch.float32,
    held: torch.dtype = torch.float8_e4m3fn,
) -> Quantizer:
    """As DeepSeek V3 has them; without ``block`` one scale a matrix."""
    scaled, _ = float8("tensor" if block is None else "block", block or (1, 1), dtype=dtype, held=held)

    def write(stem: str, value: torch.Tensor) -> Written:
        q, scale, values = scaled(value)
        return named(stem, {"weight": q, "weight_scale_inv": scale}), values

    settings: dict[str, Any] = {
        "quant_method": "fp8",
        "fmt": "e5m2" if held == torch.float8_e5m2 else "e4m3",
        "activation_scheme": "dynamic",
    }
    settings |= {"weight_block_size": None if block is None else list(block)}
    return Quantizer(settings, write, lambda name, value: value.ndim == 2)


def fbgemm() -> Quantizer:
    scaled, _ = float8("channel")

    def write(stem: str, value: torch.Tensor) -> Written:
        q, scale, values = scaled(value)
        return named(
            stem, {"weight": q, "weight_scale": scale, "input_scale_ub": torch.tensor(1200.0)}
        ), values

    settings = {
        "quant_method": "fbgemm_fp8",
        "activation_scale_ub": 1200.0,
        "modules_to_not_convert": ["lm_head"],
    }
    return Quantizer(settings, write, lambda name, value: value.ndim == 2)


def mxfp8() -> Quantizer:
    scaled, _ = float8("group", group=32, dtype=torch.float8_e8m0fnu)

    def write(stem: str, value: torch.Tensor) -> Written:
        q, scale, values = scaled(value)
        return named(stem, {"weight": q, "weight_scale": scale.view(torch.uint8)}), values

    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32}
    return compressed("mxfp8-quantized", weights, write)


def mxfp4_packed() -> Quantizer:
    def write(stem: str, value: torch.Tensor) -> Written:
        codes = torch.randint(0, 16, value.shape, generator=torch.Generator().manual_seed(len(stem)))
        scale = torch.randint(
            121, 125, (len(value), value.shape[1] // 32), generator=torch.Generator().manual_seed(1)
        )
        values = e2m1(codes) * (2.0 ** (scale - 127)).repeat_interleave(32, 1)
        stored = {"weight_packed": nibbles(codes), "weight_scale": scale.to(torch.uint8)}
        return named(stem, stored), values

    weights = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32}
    return compressed("mxfp4-pack-quantized", weights, write)


def nvfp4_packed() -> Quantizer:
    def write(stem: str, value: torch.Tensor) -> Written:
        codes = torch.randint(0, 16, value.shape, generator=torch.Generator().manual_seed(len(stem)))
        scale = (torch.rand(len(value), value.shape[1] // 16) + 0.5).to(torch.float8_e4m3fn)
        divisor = torch.tensor([30.0])
        values = e2m1(codes) * (scale.float() / divisor).repeat_interleave(16, 1)
        stored = {"weight_packed": nibbles(codes), "weight_scale": scale, "weight_global_scale": divisor}
        return named(stem, {**stored, "input_global_scale": torch.ones(1)}), values

    weights = {
        "num_bits": 4,
        "type": "float",
        "symmetric": True,
        "strategy": "tensor_group",
        "group_size": 16,
    }
    return compressed("nvfp4-pack-quantized", weights, write)


def e2m1(codes: torch.Tensor) -> torch.Tensor:
    sizes = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    return torch.where(codes > 7, -sizes[codes % 8], sizes[codes % 8])


def nibbles(codes: torch.Tensor) -> torch.Tensor:
    return (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)


def bitsandbytes4(kind: str = "nf4", *, nested: bool = False, block: int = 64) -> Quantizer:
    table = NF4 if kind == "nf4" else torch.cat((FP4, -FP4))

    def write(stem: str, value: torch.Tensor) -> Written:
        flat = value.flatten()
        padded = torch.nn.functional.pad(flat, (0, -len(flat) % block)).unflatten(0, (-1, block))
        largest = padded.abs().amax(-1)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16"}
        stored: dict[str, Any] = {"weight.quant_map": table}
        if nested:
            offset = largest.mean()
            map_of = torch.linspace(-1, 1, 256)
            outer = torch.nn.functional.pad(largest - offset, (0, -len(largest) % 256)).unflatten(
                0, (-1, 256)
            )
            inner = outer.abs().amax(-1).clamp(min=1e-12)
            codes = (outer / inner[:, None])[..., None].sub(map_of).abs().argmin(-1)
            largest_codes = codes.flatten()[: len(largest)]
            largest = map_of[largest_codes] * inner.repeat_interleave(256)[: len(largest)] + offset
            stored |= {"weight.absmax": largest_codes.to(torch.uint8), "weight.nested_absmax": inner}
            stored |= {"weight.nested_quant_map": map_of}
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset.item()}
        else:
            stored["weight.absmax"] = largest
        q = (padded / largest[:, None])[..., None].sub(table).abs().argmin(-1)
        values = (table[q] * largest[:, None]).flatten()[: len(flat)].reshape(value.shape)
        q = q.flatten()[: len(flat)]
        stored["weight"] = (q[::2] << 4 | q[1::2]).to(torch.uint8).reshape(-1, 1)
        text = json.dumps({**state, "shape": list(value.shape)}).encode()
        stored[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text), dtype=torch.uint8)
        return named(stem, stored), values

    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    settings |= {"bnb_4bit_use_double_quant": nested, "llm_int8_skip_modules": None}
    return Quantizer(settings, write, lambda name, value: value.ndim == 2)


def bitsandbytes8() -> Quantizer:
    def write(stem: str, value: torch.Tensor) -> Written:
        largest = value.abs().amax(-1)
        q = (value * 127 / largest[:, None]).round().to(torch.int8)
        stored = {"weight": q, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
        return named(stem, stored), q.float() * (largest / 127)[:, None]

    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}
    return Quantizer(settings, write)


def named(stem: str, stored: dict[str, Any]) -> Tensors:
    return {
        f"{stem}.{name}": (
            torch.from_numpy(value) if isinstance(value, np.ndarray) else value.clone()
        ).contiguous()
        for name, value in stored.items()
    }


QUANTIZERS: dict[str, Quantizer] = {
    **{f"gptq{bits}": gptq(bits) for bits in (2, 3, 4, 8)},
    **{f"gptq{bits}-zeros": gptq(bits, symmetric=False) for bits in (2, 3, 4, 8)},
    "gptq-rows": gptq(group=-1),
    "gptq-v2": gptq(v2=True, symmetric=False),
    "gptq-mixed": gptq(mixed=True),
    "gptq-16": gptq(group=16),
    "awq": awq(),
    "awq-rows": awq(-1),
    "packed4": pack_quantized(),
    "packed4-zeros": pack_quantized(symmetric=False),
    "packed4-mixed": pack_quantized(mixed=True),
    "packed8": pack_quantized(8, -1),
    "packed8-zeros": pack_quantized(8, symmetric=False),
    "packed5": pack_quantized(5, symmetric=False),
    "int8": int_quantized(),
    "int8-zeros": int_quantized(symmetric=False),
    "int8-tensor": int_quantized("tensor"),
    **{f"float8-{how}": float_quantized(how) for how in ("tensor", "channel", "group", "block")},
    "fp8": fp8((24, 32)),
    "fp8-tensor": fp8(None),
    "fp8-e5m2": fp8((24, 32), held=torch.float8_e5m2),
    "fp8-e8m0": fp8((32, 32), torch.float8_e8m0fnu),
    "fbgemm": fbgemm(),
    "mxfp8": mxfp8(),
    "mxfp4": mxfp4_packed(),
    "nvfp4": nvfp4_packed(),
    "nf4": bitsandbytes4(),
    "nf4-nested": bitsandbytes4(nested=True),
    "fp4": bitsandbytes4("fp4", block=128),
    "bnb8": bitsandbytes8(),
}


def quantize_directory(
    plain: Path, target: Path, quantizer: Quantizer
) -> tuple[Path, dict[str, torch.Tensor]]:
    """The checkpoint in ``plain`` with matrices in blocks quantized; and the values of all tensors."""
    target.mkdir(exist_ok=True)
    stored: Tensors = {}
    values: Tensors = {}
    for name, value in load_file(plain / "model.safetensors").items():
        is_matrix = ".layers." in name and name.endswith("_proj.weight")
        if is_matrix and quantizer.takes(name, value):
            tensors, values[name] = quantizer.write(name.removesuffix(".weight"), value.float())
            stored |= tensors
        else:
            stored[name] = values[name] = value
    biases = {name: value for name, value in values.items() if name.endswith(".bias")}
    save_file(stored | biases, target / "model.safetensors")  # in the place of GPTQ's zeros
    document = json.loads((plain / "config.json").read_text()) | {"quantization_config": quantizer.settings}
    (target / "config.json").write_text(json.dumps(document))
    return target, values
