"""What ``forward`` is given, checked: masks, positions, which columns are asked for. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from ...swarm.errors import UsageError


def new_columns(attention_mask: Tensor | None, past: int, input_ids: Tensor) -> Tensor | None:
    """The part of ``attention_mask`` (rows, past + tokens) that is about ``input_ids`` (rows, tokens); None
    where nothing is masked out."""
    if attention_mask is None:
        return None
    rows, tokens = input_ids.shape
    if attention_mask.shape != (rows, past + tokens):
        raise UsageError(
            f"an attention_mask of shape {tuple(attention_mask.shape)} is not possible here",
            hint=f"Give one of (rows, past + tokens), which is ({rows}, {past + tokens}).",
        )
    mask = attention_mask[:, past:]
    return None if bool((mask == 1).all()) else mask


def check_positions(position_ids: Tensor | None, mask: Tensor | None, tokens: int) -> None:
    """Raises UsageError unless each row's tokens follow each other: peers count positions by themselves.

    Where a row begins does not matter: rotary embedding knows differences of positions only.
    """
    if position_ids is None or tokens < 2:
        return
    if position_ids.ndim != 2 or position_ids.shape[1] != tokens:
        raise UsageError(
            f"position_ids of shape {tuple(position_ids.shape)} are not possible here",
            hint=f"Give them as (rows, {tokens}), or leave them out.",
        )
    if mask is None:
        follow = bool((position_ids.diff(dim=1) == 1).all())
    else:
        positions = position_ids.expand(len(mask), tokens)
        follow = all(
            bool((row[kept].diff() == 1).all()) for row, kept in zip(positions, mask.bool(), strict=True)
        )
    if not follow:
        raise UsageError(
            "position_ids that skip or repeat are not possible with a swarm",
            hint="Leave them out; give each sequence a row of its own.",
        )


def wanted_columns(logits_to_keep: int | Tensor, tokens: int) -> Tensor:
    """The columns, 0 to ``tokens`` - 1, whose logits are asked for, as transformers reads it: the last so
    many, all for 0, or those of a tensor of indices."""
    if isinstance(logits_to_keep, Tensor):
        indices = logits_to_keep.flatten().cpu().long()
        indices = torch.where(indices < 0, indices + tokens, indices)
        if not indices.numel() or not 0 <= int(indices.min()) <= int(indices.max()) < tokens:
            raise UsageError(
                f"logits_to_keep names columns outside of the {tokens} given", hint="Count from 0."
            )
        return indices
    if logits_to_keep < 0:
        raise UsageError(f"logits_to_keep={logits_to_keep} is not possible", hint="Give 0 or more.")
    return torch.arange(max(0, tokens - logits_to_keep) if logits_to_keep else 0, tokens)
