"""Drafts of assisted decoding, kept within what a sequence may hold."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.generation import CandidateGenerator


def bound_candidates(generator: CandidateGenerator, most: int) -> None:
    """Let ``generator`` propose sequences of ``most`` tokens at most.

    Prompt lookup proposes what it finds, beyond ``max_length`` and the end of the sessions on the peers.
    """
    propose = generator.get_candidates

    def get_candidates(input_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        candidates, logits = propose(input_ids, *args, **kwargs)
        known = input_ids.shape[1]
        drafted = max(0, min(candidates.shape[1], most) - known)
        return candidates[:, : known + drafted], None if logits is None else logits[:, :drafted]

    generator.get_candidates = get_candidates
