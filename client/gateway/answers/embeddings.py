"""The vectors of one request: a few texts at a time, each in its caller's turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ....swarm.runtime.tasks import all_of
from ...async_model import EMBEDDINGS_AT_ONCE, AsyncSwarmModel
from ...embedding import Embedding
from ...http.admission import GatewayAdmission
from ...http.errors import refused
from ..requests.embedding import EmbeddingRequest


async def embedded(
    model: AsyncSwarmModel, request: EmbeddingRequest, admission: GatewayAdmission, caller: str
) -> Sequence[Embedding]:
    """In the order of the texts. Raises ApiError, and SwarmErrors, as UsageError where the model is none for
    embeddings."""
    size = model.facts.hidden_size
    if request.dimensions not in (None, size):
        raise refused(
            "dimensions", f"of this model's vectors is {size}; shorter ones are not promised to work"
        )
    found: dict[int, Embedding] = {}
    waiting: Iterator[tuple[int, str | tuple[int, ...]]] = iter(enumerate(request.texts))

    async def work() -> None:
        for number, text in waiting:
            async with admission.generation(caller):
                found[number] = await model.embedding(text)

    await all_of(*(work() for _ in range(min(EMBEDDINGS_AT_ONCE, len(request.texts)))))
    return [found[number] for number in range(len(request.texts))]
