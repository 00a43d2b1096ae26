"""The output head: hidden states to logits over the vocabulary, fast and still exact where it matters.

The head is the largest matrix of a small model. Where its weights are held with less than the file's
precision, they propose, and the best tokens' logits are then computed again from the file's own rows in
float32. torch's packed kernels also answer in bfloat16, whose steps of 0.125 at a logit of 20 make ties of
the best tokens. Measured with these on SmolLM2 (Q8_0 head, Moby Dick, against float32): int8 alone KL 1.5e-3
and the same top token 97.2 % of the time, bfloat16 dense 4.0e-4 and 97.5 %, int8 with 64 tokens refined
2.8e-4 and 100 %.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .linear import Linear
from .norm import RmsNorm

if TYPE_CHECKING:
    from .raw_tensor import RawTensor

Head = Callable[[Tensor], Tensor]
"""``head(x)``: hidden states after the last block, (T, hidden) → (T, vocab) float32, final norm included."""

REFINED = 64
"""Tokens per row whose logits are computed exactly: about 0.15 ms at hidden 576."""
EXACT_ROWS = 16
"""From more rows than this on, reading the whole matrix exactly costs less than refining every row."""
_SLICE_VALUES = 1 << 21
_BUCKET = 64


class DenseHead:
    """``norm`` and ``linear`` are all there is to it."""

    __slots__ = ("_linear", "_norm")

    def __init__(self, norm: RmsNorm, linear: Linear) -> None:
        self._norm = norm
        self._linear = linear

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (T, hidden) → (T, vocab) float32."""
        return self._linear(self._norm(x)).float()


class RefinedHead:
    """``propose`` gives rough logits, ``raw`` (vocab, hidden), in the memory map, decides. CPU only."""

    __slots__ = ("_norm", "_propose", "_raw")

    def __init__(self, norm: RmsNorm, propose: Head, raw: RawTensor) -> None:
        self._norm = norm
        self._propose = propose
        self._raw = raw

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (T, hidden) float32 → (T, vocab) float32."""
        normed = self._norm(x)
        if x.shape[0] > EXACT_ROWS:
            return self._exact(normed)
        logits = self._propose(x)
        best = largest(logits, min(REFINED, logits.shape[1]))  # (T, k)
        rows = self._raw.dequantize_rows(best.flatten(), torch.float32)
        rows = rows.view(*best.shape, -1)  # (T, k, hidden)
        return logits.scatter_(1, best, (rows @ normed[:, :, None])[..., 0])

    def _exact(self, x: Tensor) -> Tensor:
        vocab, hidden = self._raw.shape
        logits = x.new_empty(x.shape[0], vocab)
        step = max(1, _SLICE_VALUES // hidden)
        for start in range(0, vocab, step):
            stop = min(vocab, start + step)
            rows = self._raw.dequantize_rows(torch.arange(start, stop), torch.float32)
            torch.mm(x, rows.t(), out=logits[:, start:stop])
        return logits


def largest(logits: Tensor, count: int) -> Tensor:
    """(T, vocab) → indices (T, count) of each row's largest values, in no order.

    They lie in the ``count`` buckets of largest maximum: three times faster than ``topk`` of all.
    """
    rows, vocab = logits.shape
    if vocab % _BUCKET or vocab // _BUCKET <= count:
        return logits.topk(count, sorted=False).indices
    buckets = logits.view(rows, vocab // _BUCKET, _BUCKET)
    chosen = buckets.amax(-1).topk(count, sorted=False).indices  # (T, count)
    among = buckets.gather(1, chosen[..., None].expand(-1, -1, _BUCKET)).flatten(1)
    inner = among.topk(count, sorted=False).indices
    return chosen.gather(1, inner // _BUCKET) * _BUCKET + inner % _BUCKET
