"""Embedding, norm and head of a client: the same that its own generation loop uses."""

from __future__ import annotations

from ...shards.models.client_part import ClientModel
from ...swarm.errors import UsageError
from ..local_model import LocalModel


def client_part(local: LocalModel) -> ClientModel:
    """Raises UsageError for a client whose head is none of ours."""
    if not isinstance(local.head, ClientModel):
        raise UsageError("this client's head was not read from a model's files", hint="Use from_pretrained.")
    return local.head
