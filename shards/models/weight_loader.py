"""From a checkpoint's tensors to linears as the plan wants them held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...swarm.errors import CheckpointError
from ..kernels.linear import native_dense, native_file, native_int4, native_int8_pieces
from ..layers.linear import DenseLinear, Int4Linear, Int8Linear, Linear, RowTiles, Scratch
from ..layers.norm import RmsNorm
from ..layers.quantize import (
    GROUP,
    INT4_SOURCES,
    INT8_SOURCES,
    Int4Groups,
    Int8Groups,
    Int8Rows,
    as_torch_holds,
    file_groups,
    file_int8_groups,
    to_int4,
    to_int8,
    to_int8_groups,
)
from .load_plan import LoadPlan, WeightKind
from .rounding_bounds import RoundingBounds

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint
    from ..formats.config import ModelConfig
    from ..formats.raw_tensor import RawTensor

Progress = Callable[[int, int, str], None]
"""``progress(done_bytes, total_bytes, label)``."""


_PIECE_VALUES = 1 << 20
"""This many weights are quantized at a time."""


class TensorReader:
    """Reads tensors, reports progress, and keeps count of how they ended up.

    ``total_bytes``: what ``progress`` counts towards, in bytes of the file. ``label``: what it is told.
    ``nbytes``: memory that is held.
    """

    def __init__(
        self, checkpoint: Checkpoint, total_bytes: int = 0, progress: Progress | None = None
    ) -> None:
        self.nbytes = 0
        self.label = ""
        self._checkpoint = checkpoint
        self._total = total_bytes
        self._done = 0
        self._progress = progress
        self._held: Counter[str] = Counter()

    def summary(self) -> str:
        """How the matrices are held, most used first: ``int4 (Q4_1)`` for the file's own groups, ``bf16``."""
        return " + ".join(form for form, _ in self._held.most_common())

    def _matrices(self, names: Sequence[str], sizes: Sequence[int], cols: int) -> list[RawTensor]:
        """The named weights (without ``.weight``), checked to have ``sizes`` rows each."""
        raws = [self._checkpoint.tensor(f"{name}.weight") for name in names]
        for raw, size in zip(raws, sizes, strict=True):
            check_shape(raw, (size, cols))
        return raws

    def _bias(self, names: Sequence[str], sizes: Sequence[int]) -> Tensor | None:
        """Stacked biases, zeros for the weights that have none; None if no weight has one."""
        if not any(self._checkpoint.has(f"{name}.bias") for name in names):
            return None
        parts = []
        for name, size in zip(names, sizes, strict=True):
            if not self._checkpoint.has(f"{name}.bias"):
                parts.append(torch.zeros(size))
                continue
            raw = self._checkpoint.tensor(f"{name}.bias")
            check_shape(raw, (size,))
            parts.append(torch.from_numpy(raw.dequantize()))
            self._read(raw)
        return torch.cat(parts)

    def _count(self, form: str, raws: Sequence[RawTensor]) -> None:
        self._held[form] += sum(raw.nbytes for raw in raws)

    def _read(self, raw: RawTensor) -> None:
        self._done += raw.nbytes
        if self._progress is not None:
            self._progress(self._done, max(self._total, self._done), self.label)


class WeightLoader(TensorReader):
    """Holds them for torch and for the C kernels, as ``plan`` says."""

    def __init__(
        self, checkpoint: Checkpoint, plan: LoadPlan, total_bytes: int = 0, progress: Progress | None = None
    ) -> None:
        super().__init__(checkpoint, total_bytes, progress)
        self.plan = plan
        self.scratch = Scratch()

    def norm(self, name: str, config: ModelConfig) -> RmsNorm:
        """An RMSNorm over the hidden size, its weight in the activation type."""
        raw = self._checkpoint.tensor(name)
        check_shape(raw, (config.hidden_size,))
        weight = tensor_of(raw, self.plan.dtype).to(self.plan.device)
        self.nbytes += weight.nbytes
        self._read(raw)
        return RmsNorm(weight, config.rms_norm_eps)

    def linear(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        cols: int,
        kind: WeightKind | None = None,
        errors: RoundingBounds | None = None,
    ) -> Linear:
        """One linear of the named weights stacked (``sizes[i]`` rows each, without ``.weight``).

        ``kind`` None: all in the form that the least compressible needs, so mixed files lose nothing.
        ``errors`` learns what rounding does to each row, where the weights are rounded.
        """
        raws = self._matrices(names, sizes, cols)
        if kind is None:
            kinds = {self.plan.kind(raw) for raw in raws}
            kind = kinds.pop() if len(kinds) == 1 else WeightKind.DENSE
        if cols % GROUP:
            kind = WeightKind.DENSE
        bias = self._bias(names, sizes)
        if bias is not None:
            bias = bias.to(self.plan.device)
            self.nbytes += bias.nbytes
        linear = self._hold(kind, raws, bias, errors)
        self.nbytes += linear.nbytes
        for raw in raws:
            self._read(raw)
        return linear

    def _hold(
        self, kind: WeightKind, raws: Sequence[RawTensor], bias: Tensor | None, errors: RoundingBounds | None
    ) -> Linear:
        if kind is WeightKind.INT4:
            return self._int4(raws, bias, errors)
        if kind is WeightKind.INT8:
            return self._int8(raws, bias, errors)
        dtypes = {self.plan.dense_dtype(raw.qtype) for raw in raws}
        dtype = torch.float32 if len(dtypes) > 1 else dtypes.pop()
        self._count(str(dtype).removeprefix("torch."), raws)
        if self.plan.native(dtype):
            return native_dense([tensor_of(raw, dtype) for raw in raws], bias)
        return self._dense(torch.cat([tensor_of(raw, dtype) for raw in raws]), bias)

    def _int4(self, raws: Sequence[RawTensor], bias: Tensor | None, errors: RoundingBounds | None) -> Linear:
        plan = self.plan
        as_in_file = self._count_integers("int4", INT4_SOURCES, raws)
        native = plan.precision if plan.native(WeightKind.INT4) else None
        if native is not None and as_in_file and (linear := native_file(raws, bias, native)) is not None:
            return linear
        parts = [
            file_groups(raw) if raw.qtype in INT4_SOURCES else whole(in_pieces(to_int4, raw)) for raw in raws
        ]
        if native is not None:
            return native_int4(parts, bias, native)
        groups = Int4Groups(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
        if plan.packed:
            if errors is not None:
                _add_in_pieces(errors, groups)
            return self._plain(Int4Linear(groups, bias, self.scratch, plan.wide), pad=False)
        return self._dense(groups.dequantize().to(plan.dtype), bias)

    def _int8(self, raws: Sequence[RawTensor], bias: Tensor | None, errors: RoundingBounds | None) -> Linear:
        plan = self.plan
        if plan.precision is not None and plan.native(WeightKind.INT8):
            if self._count_integers("int8", INT8_SOURCES, raws):
                linear = native_file(raws, bias, plan.precision)
                if linear is not None:
                    return linear
            quantize = to_int8_groups if errors is None else errors.watched(to_int8_groups)
            pieces = (
                piece
                for raw in raws
                for piece in (
                    (file_int8_groups(raw),) if raw.qtype in INT8_SOURCES else in_pieces(quantize, raw)
                )
            )
            rows = sum(raw.shape[0] for raw in raws)
            return native_int8_pieces(pieces, rows, raws[0].cols, bias, plan.precision)
        self._count("int8", raws)
        to_rows = to_int8 if errors is None else errors.watched(to_int8)
        held = whole(piece for raw in raws for piece in in_pieces(to_rows, raw))
        if plan.packed:
            return self._plain(Int8Linear(held, bias, self.scratch, plan.wide), pad=False)
        return self._dense(held.dequantize().to(plan.dtype), bias)

    def _dense(self, weight: Tensor, bias: Tensor | None) -> Linear:
        wide = (
            self.plan.wide if weight.dtype == torch.bfloat16 and self.plan.options.dtype == "auto" else None
        )
        return self._plain(DenseLinear(weight.to(self.plan.device), bias, self.scratch, wide), pad=True)

    def _plain(self, linear: Linear, *, pad: bool) -> Linear:
        """A linear on torch's kernels, as the plan wants it used."""
        return RowTiles(linear, pad=pad) if self.plan.options.deterministic else linear

    def _count_integers(self, form: str, sources: Sequence[str], raws: Sequence[RawTensor]) -> bool:
        """Whether all are of types ``sources``, whose integers are held as they are."""
        as_in_file = all(raw.qtype in sources for raw in raws)
        self._count(f"{form} ({raws[0].qtype})" if as_in_file else form, raws)
        return as_in_file


_Parts = TypeVar("_Parts", Int4Groups, Int8Groups, Int8Rows)


def in_pieces(quantize: Callable[[Tensor], _Parts], raw: RawTensor) -> Iterator[_Parts]:
    """``quantize`` of the rows of ``raw``, some at a time, so that its float32 copy is never whole."""
    rows, cols = raw.shape
    step = max(1, _PIECE_VALUES // cols)
    for start in range(0, rows, step):
        yield quantize(torch.from_numpy(raw.dequantize_rows(np.arange(start, min(rows, start + step)))))


def whole(pieces: Iterable[_Parts]) -> _Parts:
    """The pieces put together."""
    held = list(pieces)
    return type(held[0])(*(torch.cat(tensors) for tensors in zip(*held, strict=True)))


def _add_in_pieces(errors: RoundingBounds, groups: Int4Groups) -> None:
    """What torch's kernel makes of ``groups``, as ``in_pieces`` does it."""
    rows, cols = groups.q.shape
    step = max(1, _PIECE_VALUES // cols)
    for start in range(0, rows, step):
        piece = Int4Groups(*(tensor[start : start + step] for tensor in groups))
        errors.add(piece.dequantize(), as_torch_holds(piece).dequantize())


def tensor_of(raw: RawTensor, dtype: torch.dtype) -> Tensor:
    """The values of ``raw`` in ``dtype``."""
    values = torch.from_numpy(raw.dequantize(str(dtype).removeprefix("torch.")))
    return values.view(dtype)


def check_shape(raw: RawTensor, shape: tuple[int, ...]) -> None:
    if tuple(raw.shape) != shape:
        raise CheckpointError(
            f"tensor {raw.name} has shape {tuple(raw.shape)}, the configuration says {shape}",
            hint="The file is damaged or its configuration belongs to another model.",
        )
