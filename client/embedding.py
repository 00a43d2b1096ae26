"""Vectors of texts: the hidden states of a text's tokens after the last block, normed and pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..shards.formats.advice.pooling import Pooling
from ..swarm.errors import UsageError
from ..swarm.protocol.messages import Want
from .session.swarm_session import SwarmSession

if TYPE_CHECKING:
    from ..shards.models.client_part import ClientModel

CHUNK = 256
"""Tokens whose hidden states are asked for at once: of a long text, all of them would take gigabytes."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """``vector`` (hidden,) float32, of length 1; ``tokens``: how many the text had."""

    vector: np.ndarray
    tokens: int


def pooling_for(asked: Pooling | str | None, own: Pooling | None, model: str) -> Pooling:
    """``asked``, or what the model's files say. Raises UsageError where neither says any."""
    if asked is not None:
        try:
            return Pooling(asked)
        except ValueError:
            names = ", ".join(Pooling)
            raise UsageError(f"pooling {asked!r} is not known", hint=f"Give one of {names}.") from None
    if own is None:
        raise UsageError(
            f"{model} is not a model for embeddings: its files say nothing of pooling",
            hint="Take one that is, such as Qwen3-Embedding, or say how to pool: mean or last.",
        )
    return own


async def embed_tokens(
    session: SwarmSession, head: ClientModel, ids: Sequence[int], pooling: Pooling
) -> np.ndarray:
    """The vector of one text (hidden,) float32. Raises what ``SwarmSession.append`` raises, and UsageError
    where no direction is left."""
    total = np.zeros((), np.float64)
    for start in range(0, len(ids), CHUNK):
        part = ids[start : start + CHUNK]
        if pooling is Pooling.MEAN:
            rows = head.final_norm(await session.append(part, want=Want.ALL))
            total = total + rows.sum(0, dtype=np.float64)
        elif start + CHUNK < len(ids):
            await session.append(part, want=Want.NOTHING)
        else:
            total = total + head.final_norm(await session.append(part, want=Want.LAST))[0]
    length = float(np.linalg.norm(total))
    if not 0 < length < np.inf:
        raise UsageError("the text has no vector: its hidden states have no direction")
    return (total / length).astype(np.float32)
