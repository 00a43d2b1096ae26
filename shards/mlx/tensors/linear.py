"""Matrix products with held weights on MLX: dense, or integers in groups with scale and bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx


class MlxLinear(Protocol):
    """``linear(x)``: x (T, in) → (T, out) of x's type."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory the weights take."""
        ...

    def __call__(self, x: mx.array) -> mx.array: ...


class ExpertLinears(Protocol):
    """A linear for each expert. ``linears(x, experts, in_order=…)``: x (*batch, 1, in), each row's expert
    (*batch; numbers that x's batch is broadcast to) → (*batch, 1, out) of x's type. ``in_order``: the numbers
    of experts never fall."""

    def __call__(self, x: mx.array, experts: mx.array, *, in_order: bool) -> mx.array: ...


class DenseLinear:
    """``weight`` (out, in), ``bias`` (out) or None; both evaluated."""

    def __init__(self, weight: mx.array, bias: mx.array | None) -> None:
        self._turned = weight.T  # a view
        mx.eval(self._turned)
        self._bias = bias
        self.nbytes: int = weight.nbytes

    def __call__(self, x: mx.array) -> mx.array:
        out = x @ self._turned if self._bias is None else mx.addmm(self._bias, x, self._turned)
        return out if out.dtype == x.dtype else out.astype(x.dtype)

    def parts(self, count: int) -> DenseLinears:
        """The rows as ``count`` linears, one below the other."""
        weight = self._turned.T.reshape(count, -1, self._turned.shape[0])
        return DenseLinears(weight, None if self._bias is None else self._bias.reshape(count, -1))


class DenseLinears:
    """As many linears of one shape, ``weight`` (count, out, in), ``bias`` (count, out): an ``ExpertLinears``,
    or one product a head (``heads``)."""

    def __init__(self, weight: mx.array, bias: mx.array | None) -> None:
        self._turned, self._bias = weight.swapaxes(1, 2), bias
        mx.eval([self._turned] if bias is None else [self._turned, bias])

    def __call__(self, x: mx.array, experts: mx.array, *, in_order: bool) -> mx.array:
        out = mx.gather_mm(x, self._turned, rhs_indices=experts, sorted_indices=in_order)
        return _with_bias(out, self._bias, experts, x.dtype)

    def heads(self, x: mx.array) -> mx.array:
        """``x`` (T, count, in) → (T, count, out)."""
        return (x.swapaxes(0, 1) @ self._turned).swapaxes(0, 1)


class Groups(NamedTuple):
    """Weights ``q * scale + bias`` in MLX's layout: ``packed`` uint32 (..., out, in * bits / 32), ``scales``
    and ``biases`` (..., out, in / group). A product is computed in the wider of x's type and theirs.

    Of ``mode`` "mxfp4", q are floats of four bits, scales are exponents (uint8), and there is no bias.
    """

    packed: mx.array
    scales: mx.array
    biases: mx.array | None
    bits: int
    group: int
    mode: str = "affine"

    @property
    def arrays(self) -> list[mx.array]:
        return [part for part in self[:3] if part is not None]

    @property
    def form(self) -> dict[str, Any]:
        """As MLX's products take it."""
        return {"transpose": True, "group_size": self.group, "bits": self.bits, "mode": self.mode}


class GroupedLinear:
    """``weight`` of out rows, ``bias`` (out) or None; all evaluated."""

    def __init__(self, weight: Groups, bias: mx.array | None) -> None:
        self._weight, self._bias = weight, bias
        self.nbytes: int = sum(part.nbytes for part in weight.arrays)

    def __call__(self, x: mx.array) -> mx.array:
        out = mx.quantized_matmul(x, *self._weight[:3], **self._weight.form)
        if self._bias is not None:
            out = out + self._bias
        return out if out.dtype == x.dtype else out.astype(x.dtype)

    def parts(self, count: int) -> GroupedLinears:
        """The rows as ``count`` linears, one below the other."""
        weight = self._weight
        biases = weight.biases
        weight = weight._replace(
            packed=_divided(weight.packed, count),
            scales=_divided(weight.scales, count),
            biases=None if biases is None else _divided(biases, count),
        )
        return GroupedLinears(weight, None if self._bias is None else self._bias.reshape(count, -1))


class GroupedLinears:
    """As many linears of one shape, ``weight`` (count, out, in), ``bias`` (count, out): an
    ``ExpertLinears``."""

    def __init__(self, weight: Groups, bias: mx.array | None) -> None:
        self._weight, self._bias = weight, bias
        mx.eval(weight.arrays if bias is None else [*weight.arrays, bias])

    def __call__(self, x: mx.array, experts: mx.array, *, in_order: bool) -> mx.array:
        out = mx.gather_qmm(
            *(x, *self._weight[:3]), rhs_indices=experts, sorted_indices=in_order, **self._weight.form
        )
        return _with_bias(out, self._bias, experts, x.dtype)


class StackedLinear:
    """Linears over one input whose outputs follow each other: matrices that are held in several forms."""

    def __init__(self, parts: Sequence[MlxLinear]) -> None:
        self._parts = tuple(parts)
        self.nbytes: int = sum(part.nbytes for part in parts)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.concatenate([part(x) for part in self._parts], axis=-1)


def _divided(rows: mx.array, count: int) -> mx.array:
    return rows.reshape(count, -1, rows.shape[1])


def _with_bias(out: mx.array, bias: mx.array | None, experts: mx.array, dtype: mx.Dtype) -> mx.array:
    if bias is not None:
        out = out + bias[experts][..., None, :]
    return out if out.dtype == dtype else out.astype(dtype)
