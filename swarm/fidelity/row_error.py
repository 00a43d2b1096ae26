"""How much of a row was lost on the wire, as its reader sees it without the exact row.

A reader multiplies a row by its first norm's weights, after which the row's own size no longer counts. So the
error that matters is, over the channels c of a row x with steps s and weights w,

    e² = Σ (w·s)²/12 / Σ (w·x)²

where s²/12 is the mean square of rounding to a step. Plain relative error does not see what a coarse codec
does to a model whose largest channels have small weights.
"""

from __future__ import annotations

import numpy as np

from ..codecs.codec import Codec, Payload

SMALLEST_WEIGHT = 2.0**-12
"""A weight counts as at least this part of the largest: a channel that the norm removes may still be read by
a later block."""


def usable_weights(weights: np.ndarray | None, width: int) -> np.ndarray:
    """The magnitudes of a norm's weights (width,), as error and scales are weighed by them: float32, above 0.
    ``weights`` None: there is no norm, or it has none."""
    if weights is None or not np.isfinite(weights).all():
        return np.ones(width, np.float32)
    magnitudes = np.abs(weights.astype(np.float32))
    largest = magnitudes.max(initial=0.0)
    if largest == 0:
        return np.ones(width, np.float32)
    return np.maximum(magnitudes, np.float32(largest * SMALLEST_WEIGHT))


def row_errors(codec: Codec, payload: Payload, tokens: int, squares: np.ndarray) -> np.ndarray:
    """The estimated error (tokens,) of each row: 0.01 is one percent. ``squares`` (width,) float64: of
    ``usable_weights``.

    0 where the codec is too fine to be measured. Raises RemoteProtocolError for a payload that ``decode``
    refuses."""
    width = len(squares)
    rows = codec.decode(payload, tokens, width)
    noise = codec.noise(payload, width)
    if noise is None:
        return np.zeros(tokens)
    lost = noise.astype(np.float64) @ squares  # (tokens,)
    there = np.square(rows, dtype=np.float64) @ squares
    return np.sqrt(lost / np.maximum(there, np.finfo(np.float64).tiny))


def exact_errors(exact: np.ndarray, rows: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """The true error (tokens,) of ``rows`` where the ``exact`` ones are known; both (tokens, width).
    ``squares``: as for ``row_errors``."""
    lost = np.square(exact.astype(np.float64) - rows) @ squares
    there = np.square(exact, dtype=np.float64) @ squares
    return np.sqrt(lost / np.maximum(there, np.finfo(np.float64).tiny))
