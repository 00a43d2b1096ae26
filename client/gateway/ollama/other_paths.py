"""Paths of Ollama's that need no model, and those that ask for what a gateway does not do."""

from __future__ import annotations

from ...http.body import to_json
from ...http.call import HttpCall
from ...http.errors import ApiError

VERSION = "0.13.0"
"""Of Ollama: clients ask for it to know what they may send, and this gateway takes what this version does."""
_HINTS = {
    "push": "it has no registry",
    "create": "start it with the model: swarm-node gateway --model PATH_OR_NAME",
    "copy": "give the model its name where it lies",
    "delete": "it holds no models; a node drops its own",
    "blobs": "it takes no files; start it with the model: swarm-node gateway --model PATH_OR_NAME",
}


async def running(call: HttpCall) -> None:
    """What Ollama says to those who only look whether it is there."""
    await call.reply("Ollama is running", headers={"Content-Type": "text/plain; charset=utf-8"})


async def version(call: HttpCall) -> None:
    await call.reply(to_json({"version": VERSION}))


async def not_here(call: HttpCall) -> None:
    """Any other path below ``/api``. Raises ApiError."""
    asked = call.scope["path_params"]["path"].partition("/")[0]
    if hint := _HINTS.get(asked):
        raise ApiError(501, f"/api/{asked} is not for a gateway to a swarm: {hint}", code="not_supported")
    raise ApiError(404, f"there is nothing at {call.scope['path'][:200]}", code="not_found")
