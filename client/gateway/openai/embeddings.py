"""OpenAI's ``/v1/embeddings``."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...embedding import Embedding
from ..requests.embedding import MAX_DIMENSIONS, MAX_TEXTS, EmbeddingRequest
from ..requests.fields import BodyFields
from ..requests.request import MAX_MODEL_NAME
from ..requests.texts import read_texts
from .known_fields import passed_over


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIEmbeddings(EmbeddingRequest):
    """``in_base64``: vectors as the base64 of their float32 values, little-endian."""

    in_base64: bool


def read_embeddings(value: object) -> OpenAIEmbeddings:
    """Raises ApiError, which names the field."""
    body = BodyFields(value)
    return OpenAIEmbeddings(
        model=body.text("model", longest=MAX_MODEL_NAME),
        texts=read_texts(body, "input", most=MAX_TEXTS),
        dimensions=body.integer("dimensions", 1, MAX_DIMENSIONS),
        in_base64=body.one_of("encoding_format", ("float", "base64")) == "base64",
        ignored=passed_over(body),
    )


def embeddings_body(
    request: OpenAIEmbeddings, model_id: str, embeddings: Sequence[Embedding]
) -> dict[str, Any]:
    tokens = sum(each.tokens for each in embeddings)
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": number,
                "embedding": base64.b64encode(each.vector.astype("<f4").tobytes()).decode()
                if request.in_base64
                else each.vector.tolist(),
            }
            for number, each in enumerate(embeddings)
        ],
        "model": model_id,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
