"""The name people know, for models of a swarm."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, NoReturn

from ...swarm.errors import UsageError
from .model import SwarmModelForCausalLM


class AutoSwarmModelForCausalLM:
    """Makes a ``SwarmModelForCausalLM`` for any model that a swarm serves and this project can read."""

    def __init__(self) -> NoReturn:
        raise UsageError(
            "AutoSwarmModelForCausalLM makes models, and is none",
            hint="Call AutoSwarmModelForCausalLM.from_pretrained(name_or_path, initial_peers=[...]).",
        )

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | PathLike[str], *, initial_peers: Sequence[str] = (), **options: Any
    ) -> SwarmModelForCausalLM:
        """Load embedding, norm and head, and join the swarm that has the rest.

        ``name_or_path``: a HuggingFace directory, a .gguf file, or a name on the HuggingFace hub; the same
        weights that the peers serve. ``initial_peers``: addresses that ``swarm-node bootstrap`` or ``serve``
        print. ``options``: those of ``SwarmModel.connect`` (``swarm``, ``swarm_key``, ``join``, ``mdns``,
        ``wire_codec``, ``quantize``, ``dtype``, ``device``, ``threads``, ``wait``, ``prefix_cache``,
        ``prefix_salt``, ``chain``, ``on_progress``); ``dtype`` may be a torch.dtype, and ``torch_dtype`` is
        the same.

        Raises what ``SwarmModel.connect`` raises, and UsageError for options of transformers that cannot be.
        """
        return SwarmModelForCausalLM.from_pretrained(name_or_path, initial_peers=initial_peers, **options)
