"""Matrices of the package bitsandbytes.

Four bits: ``X.weight``, bytes of two codes each, the first in the upper half, all rows one behind the other;
``X.weight.quant_map``, the values of the 16 codes; ``X.weight.absmax``, a scale for each block of codes; and
``X.weight.quant_state.bitsandbytes__nf4`` or ``…__fp4``, a JSON text in bytes. Where scales are quantized
again, they are bytes: entries of ``X.weight.nested_quant_map`` times ``X.weight.nested_absmax``, plus an
offset.

Eight bits: ``X.weight``, integers, and ``X.SCB``, the largest value of each row, which 127 stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ....swarm.errors import CheckpointError, UnsupportedModelError
from ..bounded_json import JsonBounds, parse_json
from ..qtypes import CODE_BLOCKS, code_qtype, integer_qtype
from ..raw_tensor import RawTensor
from ..tensors import TensorInfo, TensorSource
from ..values.fields import Fields
from .codes import Codes
from .parts import OF_ANOTHER, Parts, sibling
from .scales import Scales, whole_floats
from .tensor import Integers, quantized, signed_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .tensor import Floats, Rows

_KINDS = ("nf4", "fp4")
_BOUNDS = JsonBounds(nbytes=4096, values=64)
"""Of the JSON text; 300 bytes are usual."""
_FAR = 1e30
"""Scales are nearer to zero than this."""
_BLOCKS = CODE_BLOCKS[2:]


@dataclass(frozen=True, slots=True)
class _State:
    """What the JSON text says. ``nested``: codes of scales that share one; 0: these are plain. ``offset`` is
    then added to them."""

    shape: tuple[int, ...]
    block: int
    nested: int
    offset: float


class FourBits:
    """A ``Format``."""

    def stored(self, name: str) -> tuple[str, ...]:
        parts = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
        states = (f"quant_state.bitsandbytes__{kind}" for kind in _KINDS)
        return name, *(f"{name}.{part}" for part in (*parts, *states))

    def found(self, parts: Parts) -> TensorInfo | None:
        names = self.stored(parts.name)
        absmax = parts.manifest.get(names[1])
        if absmax is None:
            return None
        weight, table = parts.need(names[0], names[1]), parts.need(names[2], names[1])
        states = [
            (kind, parts.manifest[name])
            for kind, name in zip(_KINDS, names[5:], strict=True)
            if name in parts.manifest
        ]
        if len(states) != 1:
            raise CheckpointError(
                f"{parts.where} has {len(states)} tensors {parts.name}.quant_state, expected one",
                hint="The file is damaged, or was not written by bitsandbytes.",
            )
        ((kind, state),) = states
        count, scales = prod(parts.shape), prod(absmax.shape)
        block = next((block for block in _BLOCKS if -(-count // block) == scales), 0)
        inner = (parts.manifest.get(names[3]), parts.manifest.get(names[4]))
        sound = (
            prod(weight.shape) * _SIZES.get(weight.qtype, 0) == -(-count // 2)
            and table.qtype == "F32"
            and table.shape == (16,)
            and state.qtype == "U8"
            and len(state.shape) == 1
            and state.nbytes <= _BOUNDS.nbytes
            and block > 0
        )
        if absmax.qtype == "U8":
            scale, values = inner
            sound = (
                sound and scale is not None and values is not None and scale.qtype == values.qtype == "F32"
            )
            sound = sound and values is not None and values.shape == (256,)
        elif absmax.qtype != "F32":
            sound = False
        if not sound:
            raise parts.misfit(weight, absmax, table, state)
        return parts.matrix(code_qtype(kind.upper(), block), weight, absmax, table, state, *inner)

    def tensor(self, info: TensorInfo, source: TensorSource) -> RawTensor:
        names = self.stored(info.name)
        weight, absmax, table = map(source.tensor, names[:3])
        state_name = next(name for name in names[5:] if name in source.manifest)
        state = _state(source.tensor(state_name))
        block, count = state.block, prod(info.shape)
        fits = prod(state.shape) == count and state.shape[-1] == info.shape[-1]
        if not fits or -(-count // block) != prod(absmax.shape) or block not in _BLOCKS:
            raise CheckpointError(
                f"tensor {state_name} says shape {list(state.shape)} in blocks of {block}; "
                f"the configuration says {list(info.shape)}, and there are {prod(absmax.shape)} scales",
                hint=OF_ANOTHER,
            )
        qtype = code_qtype(state_name.rpartition("__")[2].upper(), block)
        scales = whole_floats(absmax).reshape(-1) if absmax.qtype == "F32" else _nested(source, names, state)
        packed = weight.stored.reshape(-1)

        def codes(rows: Rows, cols: int) -> NDArray[np.uint8]:
            if cols % 2 == 0:
                pairs = packed.reshape(-1, cols // 2)[rows]
                return np.stack((pairs >> 4, pairs & 15), -1).reshape(len(rows), cols)
            at = rows[:, None] * cols + np.arange(cols)
            return packed[at // 2] >> np.where(at % 2, 0, 4).astype(np.uint8) & 15

        def scale(rows: Rows, cols: int) -> Floats:
            if cols % block == 0:
                return scales.reshape(-1, cols // block)[rows]
            return scales[(rows[:, None] * cols + np.arange(cols)) // block]

        numbers = Codes(whole_floats(table).reshape(-1), codes, scale)
        return quantized(info.name, info.shape, qtype, numbers, weight)


class EightBits:
    """A ``Format``."""

    def stored(self, name: str) -> tuple[str, ...]:
        return name, sibling(name, "SCB"), sibling(name, "weight_format")

    def found(self, parts: Parts) -> TensorInfo | None:
        name, largest_name, _ = self.stored(parts.name)
        largest = parts.get(largest_name)
        if largest is None:
            return None
        weight = parts.need(name, largest_name)
        if weight.qtype != "I8" or weight.shape != parts.shape or largest.qtype != "F32":
            raise parts.misfit(weight, largest)
        if largest.shape != (parts.rows,):
            raise parts.misfit(weight, largest)
        return parts.matrix(integer_qtype(8, 0), weight, largest)

    def tensor(self, info: TensorInfo, source: TensorSource) -> RawTensor:
        weight_name, largest_name, order_name = self.stored(info.name)
        weight, largest = source.tensor(weight_name), source.tensor(largest_name)
        if order_name in source.manifest and source.tensor(order_name).stored.any():
            raise UnsupportedModelError(
                f"tensor {order_name} says that the integers are in an order for one kind of card",
                hint="Save the model again with bitsandbytes 0.40 or later, which keeps them in rows.",
            )
        scale = whole_floats(largest).reshape(-1, 1) * np.float32(1 / 127)
        stored = weight.stored
        numbers = Integers(*(8, info.shape[-1], signed_bytes(stored)), Scales(scale, 1, len(scale)), zero=128)
        return quantized(info.name, info.shape, info.qtype, numbers, weight)


_SIZES = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}
"""Types that codes may be packed into, and their bytes."""


def _state(raw: RawTensor) -> _State:
    """CheckpointError for what no bitsandbytes writes."""
    try:
        document = parse_json(raw.stored.tobytes(), _BOUNDS)
    except ValueError as error:
        raise CheckpointError(
            f"tensor {raw.name} is not the JSON that bitsandbytes writes ({error})",
            hint="Download the file again.",
        ) from None
    if not isinstance(document, dict):
        raise CheckpointError(f"tensor {raw.name} holds no JSON object", hint="Download the file again.")
    read = Fields(document, f"tensor {raw.name}")
    shape = document.get("shape")
    if (
        not isinstance(shape, list)
        or not shape
        or not all(type(size) is int and 0 < size < 2**31 for size in shape)
    ):
        raise read.wrong("shape", "a list of sizes")
    block = read.integer("blocksize", least=1, most=4096)
    if not read.has("nested_blocksize"):
        return _State(tuple(shape), block, 0, 0.0)
    nested = read.integer("nested_blocksize", least=1, most=1 << 16)
    return _State(tuple(shape), block, nested, read.number("nested_offset", above=-_FAR, below=_FAR))


def _nested(source: TensorSource, names: tuple[str, ...], state: _State) -> Floats:
    """Scales that are codes themselves."""
    codes = source.tensor(names[1]).stored.reshape(-1)
    outer, values = (whole_floats(source.tensor(name)).reshape(-1) for name in names[3:5])
    if not state.nested or len(outer) != -(-len(codes) // state.nested):
        raise CheckpointError(
            f"tensor {names[3]} has {len(outer)} scales for {len(codes)} in blocks of {state.nested}",
            hint="The file is damaged: download it again.",
        )
    found: Floats = values[codes] * outer.repeat(state.nested)[: len(codes)] + np.float32(state.offset)
    return found
