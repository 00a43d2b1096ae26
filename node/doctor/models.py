"""The model files on this machine: whether each can be read, and one of them wholly."""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote

from ...shards.checkpoint.local_models import default_local_models
from ...shards.checkpoint.lookup import find_local
from ...shards.checkpoint.opening import open_checkpoint
from ...swarm.errors import SwarmError
from .finding import Finding, Health


def look_at_models() -> Sequence[Finding]:
    """Those that are found by their names; only their heads are read."""
    found = default_local_models().checked()
    broken = [model for model in found if model.problem]
    says = f"{len(found) - len(broken)} can be served" if found else "none is here"
    if not broken:
        advice = "" if found else "A node fetches what it needs: `swarm-node serve --model qwen3-0.6b`"
        return [Finding("model files", Health.OK, says, advice)]
    details = {str(model.path): model.problem for model in broken}
    advice = f"Mend or delete them; the first: {broken[0].path}. {broken[0].hint}".strip()
    return [Finding("model files", Health.WARN, f"{says}, {len(broken)} cannot", advice, details)]


def look_at_model(name: str) -> Sequence[Finding]:
    """One model, by name or path: all that a node checks before it serves it, its digest among them."""
    try:
        place = find_local(name)
        if place is None:
            advice = (
                f"`swarm-node pull {quote(name)}` fetches it; `swarm-node models` lists what is here and in "
                "the swarm."
            )
            return [Finding("the model", Health.WARN, "it is not on this machine", advice)]
        with open_checkpoint(place.path) as checkpoint:
            digest = checkpoint.ref.digest
            checkpoint.check_tokenizer()
            details = {"model": checkpoint.ref.name, "path": place.path, "digest": digest}
            says = f"it is whole: {checkpoint.config.n_blocks} blocks, and its tokenizer can be read"
    except SwarmError as error:
        details = {"error": error.message}
        return [Finding("the model", Health.FAIL, "it cannot be served", error.hint, details)]
    return [Finding("the model", Health.OK, says, "", details)]
