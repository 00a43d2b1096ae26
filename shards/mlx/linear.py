"""Matrix products with held weights on MLX: dense, or integers in groups with scale and bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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


class GroupedLinear:
    """Weights ``q * scale + bias`` in MLX's layout: ``packed`` uint32 (out, in * bits / 32), ``scales`` and
    ``biases`` (out, in / group).

    Computed in the wider of x's type and theirs.
    """

    def __init__(
        self,
        packed: mx.array,
        scales: mx.array,
        biases: mx.array,
        *,
        bits: int,
        group: int,
        bias: mx.array | None,
    ) -> None:
        self._packed, self._scales, self._biases = packed, scales, biases
        self._bits, self._group, self._bias = bits, group, bias
        self.nbytes: int = packed.nbytes + scales.nbytes + biases.nbytes

    def __call__(self, x: mx.array) -> mx.array:
        out = mx.quantized_matmul(
            *(x, self._packed, self._scales, self._biases),
            transpose=True,
            group_size=self._group,
            bits=self._bits,
        )
        if self._bias is not None:
            out = out + self._bias
        return out if out.dtype == x.dtype else out.astype(x.dtype)

    def parts(self, count: int) -> GroupedLinears:
        """The rows as ``count`` linears, one below the other."""
        arrays = [x.reshape(count, -1, x.shape[1]) for x in (self._packed, self._scales, self._biases)]
        bias = None if self._bias is None else self._bias.reshape(count, -1)
        return GroupedLinears(*arrays, bits=self._bits, group=self._group, bias=bias)


class GroupedLinears:
    """As many linears of one shape, held as in ``GroupedLinear`` with an axis (count) in front: an
    ``ExpertLinears``."""

    def __init__(
        self,
        packed: mx.array,
        scales: mx.array,
        biases: mx.array,
        *,
        bits: int,
        group: int,
        bias: mx.array | None,
    ) -> None:
        self._held = packed, scales, biases
        self._bits, self._group, self._bias = bits, group, bias
        mx.eval(list(self._held) if bias is None else [*self._held, bias])

    def __call__(self, x: mx.array, experts: mx.array, *, in_order: bool) -> mx.array:
        out = mx.gather_qmm(
            *(x, *self._held),
            rhs_indices=experts,
            transpose=True,
            group_size=self._group,
            bits=self._bits,
            sorted_indices=in_order,
        )
        return _with_bias(out, self._bias, experts, x.dtype)


class StackedLinear:
    """Linears over one input whose outputs follow each other: matrices that are held in several forms."""

    def __init__(self, parts: Sequence[MlxLinear]) -> None:
        self._parts = tuple(parts)
        self.nbytes: int = sum(part.nbytes for part in parts)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.concatenate([part(x) for part in self._parts], axis=-1)


def _with_bias(out: mx.array, bias: mx.array | None, experts: mx.array, dtype: mx.Dtype) -> mx.array:
    if bias is not None:
        out = out + bias[experts][..., None, :]
    return out if out.dtype == dtype else out.astype(dtype)
