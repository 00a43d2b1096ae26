"""From a checkpoint's tensors to linears on torch, as the plan wants them held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..layers.quantize import INT4_SOURCES, Int4Groups, as_torch_holds, to_int8
from ..models.block_loading import mlp_stacks
from ..models.block_weights import MlpWeights
from ..models.load_plan import LoadPlan, WeightKind
from ..models.rounding_bounds import RoundingBounds, RowErrors
from ..models.weight_loader import Progress, TensorReader, check_shape, in_pieces, int4_groups, whole
from .tensors.device import DTYPES, Target, tensor_of
from .tensors.linear import DenseLinear, HeadProducts, Int4Linear, Int8Linear, Linear, RowTiles, Scratch
from .tensors.norm import Norm, norm_of

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint
    from ..formats.blocks.experts import ExpertsConfig
    from ..formats.blocks.norm import NormConfig
    from ..formats.raw_tensor import RawTensor

_PIECE_ROWS = 1024
"""The errors of this many rows are computed at a time."""


class TorchLoader(TensorReader[LoadPlan]):
    """Holds them for torch's kernels, on the plan's device."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: LoadPlan,
        total_bytes: int = 0,
        progress: Progress | None = None,
        threads: int = 1,
    ) -> None:
        # Where our kernels could have been taken and were not, nothing is held in their forms.
        super().__init__(checkpoint, replace(plan, precision=None), total_bytes, progress, threads)
        self.target = Target.of(plan)
        self._scratch = Scratch()

    def norm(self, name: str, norm: NormConfig, size: int) -> Norm:
        """Its weight and bias are of the activation type."""
        weight = self.target.tensor(self._norm_weight(name, norm, size))
        bias = self.target.tensor(self.vector(f"{name}.bias", size)) if norm.bias else None
        self.nbytes += weight.nbytes + (0 if bias is None else bias.nbytes)
        return self.target.per_row(norm_of(norm, weight, bias))

    def heads(self, name: str, heads: int, cols: int) -> Linear:
        """In the activation type: they are few."""
        raw = self._checkpoint.tensor(f"{name}.weight")
        check_shape(raw, (raw.shape[0], cols))
        weight = tensor_of(raw, self.target.dtype).unflatten(0, (heads, -1)).to(self.target.device)
        self._read(raw)
        products = self._plain(HeadProducts(weight), pad=True)
        self.nbytes += products.nbytes
        return products

    def experts(self, prefix: str, experts: ExpertsConfig, hidden: int) -> list[MlpWeights[Linear]]:
        """Each as a dense MLP is held."""
        return [
            MlpWeights(
                *(self.linear(*stack) for stack in mlp_stacks(f"{prefix}.{number}", experts.mlp, hidden))
            )
            for number in range(experts.count)
        ]

    def linear(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        cols: int,
        kind: WeightKind | None = None,
        errors: RoundingBounds | None = None,
        bias: str = "",
    ) -> Linear:
        """As ``WeightLoader.linear``."""
        raws = self._matrices(names, sizes, cols)
        biases = self._bias([bias] if bias else names, sizes)
        added = None if biases is None else torch.from_numpy(biases).to(self.target.device)
        form = self.plan.form(raws, kind)
        if form == WeightKind.INT4:
            linear = self._int4(raws, added, errors)
        elif form == WeightKind.INT8:
            linear = self._int8(raws, added, errors)
        else:
            self._count(form, raws)
            linear = self._dense(torch.cat([tensor_of(raw, DTYPES[form]) for raw in raws]), added)
        self.nbytes += linear.nbytes + (0 if added is None else added.nbytes)
        for raw in raws:
            self._read(raw)
        return linear

    def _int4(self, raws: Sequence[RawTensor], bias: Tensor | None, errors: RoundingBounds | None) -> Linear:
        for raw in raws:
            self._count(f"int4 ({raw.qtype})" if raw.qtype in INT4_SOURCES else "int4", [raw])
        groups = whole(int4_groups(raw, self._threads) for raw in raws)
        if not self.plan.packed:
            return self._unpacked(groups.dequantize(), bias)
        if errors is not None:
            _add_in_pieces(errors, groups)
        return self._plain(Int4Linear(groups, bias, self._scratch, DTYPES[self.plan.wide]), pad=False)

    def _int8(self, raws: Sequence[RawTensor], bias: Tensor | None, errors: RoundingBounds | None) -> Linear:
        self._count("int8", raws)
        held = whole(piece for raw in raws for piece in in_pieces(to_int8, raw, self._threads, errors))
        if not self.plan.packed:
            return self._unpacked(held.dequantize(), bias)
        return self._plain(Int8Linear(held, bias, self._scratch, DTYPES[self.plan.wide]), pad=False)

    def _unpacked(self, values: np.ndarray, bias: Tensor | None) -> Linear:
        return self._dense(torch.from_numpy(values).to(self.target.dtype), bias)

    def _dense(self, weight: Tensor, bias: Tensor | None) -> Linear:
        wide = None
        if weight.dtype == torch.bfloat16 and self.plan.options.dtype == "auto":
            wide = DTYPES[self.plan.wide]
        return self._plain(DenseLinear(weight.to(self.target.device), bias, self._scratch, wide), pad=True)

    def _plain(self, linear: Linear, *, pad: bool) -> Linear:
        """``linear`` as the plan wants it used."""
        return RowTiles(linear, pad=pad) if self.target.rowwise else linear


def _add_in_pieces(errors: RoundingBounds, groups: Int4Groups) -> None:
    """What torch's kernel makes of ``groups``."""
    for start in range(0, len(groups.q), _PIECE_ROWS):
        rows = slice(start, start + _PIECE_ROWS)
        piece = Int4Groups(groups.q[rows], groups.scale[rows], groups.minimum[rows])
        errors.add(RowErrors.of(piece.dequantize(), as_torch_holds(piece).dequantize()))
