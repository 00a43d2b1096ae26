"""The output head: hidden states to logits over the vocabulary, fast and still exact where it matters.

The head is the largest matrix of a small model, and all of it is read for every token. Where its weights are
held with less than the file's precision, they propose, and the best tokens' logits are then computed again
from the file's own rows. Which rows have to be looked at for that to give the true best tokens follows from
a bound on each row's error, known since the weights were rounded.

Measured on SmolLM2 (Q8_0 head, Moby Dick, against float32): int8 alone KL 1.5e-3 and the same top token
97.2 % of the time, bfloat16 dense 4.0e-4 and 97.5 %, int8 with 64 tokens refined 2.8e-4 and 100 %.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.head import NativeHead

if TYPE_CHECKING:
    from ..formats.blocks.norm import NormConfig
    from ..formats.raw_tensor import RawTensor


Head = Callable[[np.ndarray], np.ndarray]
"""``head(x)``: hidden states after the last block, (T, hidden) float32 → (T, vocab) float32, final norm
included."""

PROVEN = 64
"""The most likely tokens of a row whose logits are exact, and which are proven to be those: more than top-k
sampling usually looks at, and than logprobs are asked for."""
EXACT_ROWS = 64
"""For more rows than this the whole matrix is read exactly, which then costs about the same."""
MOST_CANDIDATES = 8
"""If more than 1/MOST_CANDIDATES of the vocabulary could be among the best, everything is computed
exactly."""
_SLICE_VALUES = 1 << 21
_REFINED_VALUES = 1 << 19
"""This many weights are refined at a time: 4 MiB in float64."""


class FinalNorm:
    """``norm(x)``: x (T, hidden) float32, normed as ``NormConfig`` says."""

    def __init__(
        self, settings: NormConfig, weight: np.ndarray | None, bias: np.ndarray | None, hidden: int
    ) -> None:
        """``weight``, ``bias``: (hidden,) float32 as in the file, or None where the settings have none."""
        self.weight = np.ones(hidden, np.float32) if weight is None else weight + np.float32(settings.offset)
        self.settings, self.bias = settings, bias

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.settings.kind == "layer":
            with np.errstate(invalid="ignore"):
                x = x - x.mean(-1, keepdims=True, dtype=np.float32)
        squares = np.einsum("th,th->t", x, x) / np.float32(x.shape[1])
        with np.errstate(invalid="ignore"):  # what is not finite stays so, and is refused where it is sampled
            normed: np.ndarray = x / np.sqrt(squares + np.float32(self.settings.eps))[:, None] * self.weight
            return normed if self.bias is None else normed + self.bias


class RefinedHead:
    """``propose`` gives rough logits, ``raw`` (vocab, hidden), in the memory map, decides. CPU only.

    The PROVEN best tokens of a row and their logits are those of the full product in float64, each rounded
    to float32; the other logits are the rough ones. A logit is off by ``bounds`` (vocab,) times the norm of
    the input at most (Cauchy-Schwarz), and by ``of_output`` of itself: whatever could thus be among the best
    is computed exactly, and where that is too much, all is.

    ``rows`` and ``refined`` count rows that went this way and logits computed again for them, ``given_up``
    rows computed exactly as a whole.
    """

    def __init__(
        self, norm: FinalNorm, propose: Head, raw: RawTensor, bounds: np.ndarray, of_output: float = 0.0
    ) -> None:
        """``bounds`` and ``of_output`` are ``RoundingBounds.bounds`` and ``Rounding.of_output``."""
        self.rows = self.refined = self.given_up = 0
        self._norm = norm
        self._propose = propose
        self._raw = raw
        self._bounds = bounds
        self._of_output = of_output
        self._native = propose if isinstance(propose, NativeHead) and propose.refines(raw) else None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """``x`` (T, hidden) float32 → (T, vocab) float32."""
        normed = self._norm(x)
        if x.shape[0] > EXACT_ROWS:
            return self._exact(normed)
        logits = self._propose(x)
        for scores, row in zip(logits, normed, strict=True):
            self._refine(scores, row)
        return logits

    def _refine(self, scores: np.ndarray, x: np.ndarray) -> None:
        """``scores`` (vocab,), changed in place; ``x`` (hidden,)."""
        vocab = len(scores)
        most = vocab // MOST_CANDIDATES
        if self._native is not None:
            count = self._native.refine(scores, x, self._raw, self._bounds, self._of_output, PROVEN, most)
        else:
            ids = self.candidates(scores, x)
            if len(ids) > most:
                ids = np.arange(vocab)
            exact = x.astype(np.float64)
            step = max(1, _REFINED_VALUES // len(x))
            for start in range(0, len(ids), step):
                part = ids[start : start + step]
                rows = self._raw.dequantize_rows(part).astype(np.float64)
                # einsum stays in this thread, where BLAS would wake others.
                scores[part] = np.einsum("rc,c->r", rows, exact)
            count = len(ids)
        self.rows += 1
        self.refined += count
        self.given_up += count == vocab

    def candidates(self, scores: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Ids that hold the PROVEN best of the exact logits for ``x`` (hidden,), of which ``scores`` are the
        rough ones."""
        count = min(PROVEN, len(scores))
        off = self._bounds * float(np.linalg.norm(x)) + self._of_output * np.abs(scores)
        threshold = np.partition(scores - off, -count)[-count]
        # Not "at least the threshold": what is not a number is above everything.
        return np.flatnonzero(~(scores + off < threshold))

    def _exact(self, x: np.ndarray) -> np.ndarray:
        vocab, hidden = self._raw.shape
        logits = np.empty((len(x), vocab), np.float32)
        step = max(1, _SLICE_VALUES // hidden)
        for start in range(0, vocab, step):
            stop = min(vocab, start + step)
            rows = self._raw.dequantize_rows(np.arange(start, stop))
            np.matmul(x, rows.T, out=logits[:, start:stop])
        return logits
