"""Models as Ollama's API lists and shows them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ....shards.tokenizer.tokenizer import Tokenizer
from ...reply import dialect_of_chats
from ..answers.offered import Offered, rfc3339
from ..requests.fields import BodyFields
from ..requests.request import MAX_MODEL_NAME
from .requests import LATEST

KEPT_S = 365 * 86400
"""How long a model stays loaded, to be told to those who ask: as long as the swarm serves it."""


def read_ollama_name(value: object) -> str:
    """The model that a request is about. Raises ApiError."""
    body = BodyFields(value)
    name = body.text("model", longest=MAX_MODEL_NAME) or body.text("name", longest=MAX_MODEL_NAME)
    if not name:
        raise body.wrong("model", "is required")
    return name.removesuffix(LATEST)


def ollama_pulled(_: Offered) -> dict[str, Any]:
    """A model that is offered is here: those who would first fetch it need not."""
    return {"status": "success"}


def ollama_list(models: Sequence[Offered]) -> dict[str, Any]:
    return {"models": [{**_entry(each), "modified_at": each.offered_at} for each in models]}


def ollama_running(models: Sequence[Offered]) -> dict[str, Any]:
    """What the swarm serves is loaded. Nothing of it is in a memory of this machine's."""
    until = rfc3339(time.time() + KEPT_S)
    return {
        "models": [
            {**_entry(each), "expires_at": until, "size_vram": 0, "context_length": each.model.context}
            for each in models
        ]
    }


def ollama_model(offered: Offered) -> dict[str, Any]:
    model, facts = offered.model, offered.model.facts
    family = facts.family or "model"
    return {
        **dict.fromkeys(("license", "modelfile", "parameters", "template"), ""),
        "details": _details(offered),
        "model_info": {
            "general.architecture": family,
            "general.basename": model.model.name,
            "general.parameter_count": facts.parameters,
            f"{family}.block_count": model.model.n_blocks,
            f"{family}.context_length": model.context,
            f"{family}.embedding_length": facts.hidden_size,
        },
        "capabilities": _capabilities(model.tokenizer),
        "modified_at": offered.offered_at,
    }


def _capabilities(tokenizer: Tokenizer) -> list[str]:
    found = ["completion"]
    if not tokenizer.has_chat_template:
        return found
    if "tools" in tokenizer.chat_variables:
        found.append("tools")
    dialect = dialect_of_chats(tokenizer)
    return [*found, "thinking"] if dialect.thinks or dialect.has_channels else found


def _entry(offered: Offered) -> dict[str, Any]:
    name = offered.id if ":" in offered.id else offered.id + LATEST
    return {
        "name": name,
        "model": name,
        "size": offered.model.facts.nbytes,
        "digest": offered.model.model.digest,
        "details": _details(offered),
    }


def _details(offered: Offered) -> dict[str, Any]:
    facts = offered.model.facts
    return {
        "parent_model": "",
        "format": "",
        "family": facts.family,
        "families": [facts.family],
        "parameter_size": _short(facts.parameters),
        "quantization_level": facts.weights,
    }


def _short(count: int) -> str:
    """As Ollama writes it: 134.52M, 7.6B."""
    if count >= 10**9:
        return f"{count / 10**9:.1f}B"
    return f"{count / 10**6:.2f}M" if count >= 10**6 else str(count)
