"""Rows with a sideband: what the blocks of a span read beside the residual, made by the client, taken off and
passed on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...swarm.errors import LocalProtocolError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...swarm.types import Span
    from ..formats.config import ModelConfig

    Floats = NDArray[np.float32]


def check_width(config: ModelConfig, span: Span, rows: Floats) -> None:
    """Raises LocalProtocolError for ``rows`` that are not those that enter at ``span.start``."""
    width = config.row_width(span.start)
    if rows.shape[1] != width:
        raise LocalProtocolError(f"rows of {rows.shape[1]} values: block {span.start} reads {width}")


def residual_of(config: ModelConfig, span: Span, rows: Floats) -> Floats:
    """A copy, C-contiguous, of the residual stream of ``rows`` that enter at ``span.start``. Raises
    LocalProtocolError for rows of another width."""
    check_width(config, span, rows)
    return np.array(rows[:, : config.residual_width], np.float32, order="C")


def passed_on(config: ModelConfig, span: Span, rows: Floats, residual: Floats) -> Floats:
    """The rows that leave at ``span.end``: the blocks' output ``residual``, and what ``rows``, which had
    entered, have for the blocks after them."""
    beside = config.row_width(span.end) - config.residual_width
    return np.concatenate((residual, rows[:, -beside:]), 1) if beside else residual
