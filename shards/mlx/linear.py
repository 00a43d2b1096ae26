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


class StackedLinear:
    """Linears over one input whose outputs follow each other: matrices that are held in several forms."""

    def __init__(self, parts: Sequence[MlxLinear]) -> None:
        self._parts = tuple(parts)
        self.nbytes: int = sum(part.nbytes for part in parts)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.concatenate([part(x) for part in self._parts], axis=-1)
