"""Models as Anthropic's API lists them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..answers.offered import Offered


def anthropic_model(offered: Offered) -> dict[str, Any]:
    return {
        "type": "model",
        "id": offered.id,
        "display_name": offered.id,
        "created_at": offered.offered_at,
        "lifecycle": "active",
        "max_input_tokens": offered.model.context,
        "max_tokens": offered.model.context,
    }


def anthropic_list(models: Sequence[Offered]) -> dict[str, Any]:
    """All of them in one page."""
    entries = [anthropic_model(offered) for offered in models]
    return {
        "data": entries,
        "has_more": False,
        "first_id": entries[0]["id"] if entries else None,
        "last_id": entries[-1]["id"] if entries else None,
    }
