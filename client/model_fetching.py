"""A client's part of a model, from peers of the swarm that share its weights."""

from __future__ import annotations

from functools import partial

from ..shards.checkpoint.local_models import weights_folder
from ..shards.checkpoint.lookup import ModelLocation
from ..shards.pieces.cache import PieceCache
from ..swarm.errors import LocalProtocolError
from .local_model import OnProgress
from .network import ClientNetwork


async def fetch_client_part(
    location: ModelLocation, network: ClientNetwork, on_progress: OnProgress | None
) -> str:
    """Returns what ``open_checkpoint`` takes. Embedding, final norm, head and tokenizer are then in the cache
    of this machine, where they are found the next time. Raises ModelError, NetworkError."""
    from ..shards.transfer.fetch import fetch_model  # here: most clients have their model

    model = location.ref
    if model is None:
        raise LocalProtocolError("a model of the swarm without its digest")

    def progress(done: int, total: int, label: str) -> None:
        if on_progress is not None:
            on_progress(f"{label} ({done * 100 // total if total else 100} %)")

    path = await fetch_model(
        model,
        blocks=None,
        client=True,
        nodes=partial(network.directory.nodes_of, location.refs),
        transport=network.transport,
        cache=PieceCache(weights_folder()),
        root=location.root,
        on_progress=progress,
    )
    return str(path)
