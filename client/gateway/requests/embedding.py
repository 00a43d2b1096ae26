"""A request for vectors of texts, whatever the API."""

from __future__ import annotations

from dataclasses import dataclass

MAX_TEXTS = 2048
"""Texts of one request, as at OpenAI."""
MAX_DIMENSIONS = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """``texts``: or token ids. ``dimensions``: how long the vectors are to be; None: as they are.
    ``ignored``: fields that are not known."""

    model: str | None
    texts: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    ignored: tuple[str, ...] = ()
