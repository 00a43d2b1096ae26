"""Ollama's ``/api/embed``, and ``/api/embeddings``, which is its older form for one text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...embedding import Embedding
from ..requests.embedding import MAX_DIMENSIONS, MAX_TEXTS, EmbeddingRequest
from ..requests.fields import BodyFields
from ..requests.texts import read_texts
from ..requests.unknown_fields import passed_over
from .requests import HARMLESS, read_model


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaEmbeddings(EmbeddingRequest):
    """``name``: the model as the client calls it."""

    name: str


def read_embed(value: object) -> OllamaEmbeddings:
    """Raises ApiError, which names the field."""
    return _read(value, "input", MAX_TEXTS)


def read_old_embeddings(value: object) -> OllamaEmbeddings:
    return _read(value, "prompt", 1)


def _read(value: object, field: str, most: int) -> OllamaEmbeddings:
    body = BodyFields(value)
    name, model = read_model(body)
    body.refuse("truncate", False, why="is not possible here: a text that is too long is refused")
    body.inner("options")
    return OllamaEmbeddings(
        name=name,
        model=model,
        texts=read_texts(body, field, most=most, ids=False),
        dimensions=body.integer("dimensions", 1, MAX_DIMENSIONS),
        ignored=passed_over(body, HARMLESS),
    )


def embed_body(request: OllamaEmbeddings, model_id: str, embeddings: Sequence[Embedding]) -> dict[str, Any]:
    return {
        "model": request.name,
        "embeddings": [each.vector.tolist() for each in embeddings],
        "prompt_eval_count": sum(each.tokens for each in embeddings),
    }


def old_embeddings_body(
    request: OllamaEmbeddings, model_id: str, embeddings: Sequence[Embedding]
) -> dict[str, Any]:
    return {"embedding": embeddings[0].vector.tolist()}
