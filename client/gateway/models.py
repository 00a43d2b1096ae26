"""The models that a gateway offers, and which of them the swarm can serve now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...dht.directory import Directory
from ...swarm.errors import UsageError
from ...swarm.names import ModelName, did_you_mean, listed, matching
from ...swarm.naming.announced import by_model, model_of
from ...swarm.routing.best_route import missing_blocks
from ...swarm.types import ModelRef, NodeInfo, NodeState, Span
from ..async_model import AsyncSwarmModel
from ..http.errors import ApiError, serve_commands
from .answers.offered import Offered

FRESH_S = 2.0
"""The directory's answer is reused for this many seconds."""
MAX_OTHERS = 256
"""Models that the swarm serves and the gateway does not offer: so many are told of, those with most nodes."""
MAX_LOADING = 16
"""Nodes that are told as loading blocks of a model."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """One model's nodes that are online, the blocks that none of them serves, and nodes that load some."""

    nodes: int
    missing: tuple[Span, ...]
    loading: tuple[NodeInfo, ...]


class Offers:
    """``initial_peers``: an address to join through, for the commands in errors."""

    def __init__(
        self, models: Sequence[AsyncSwarmModel], directory: Directory, *, initial_peers: str = "ADDR"
    ) -> None:
        self.initial_peers = initial_peers
        self._created = int(time.time())
        self._directory = directory
        names = [model.model.name for model in models]
        self._by_id = {
            model.model.name if names.count(model.model.name) == 1 else str(model.model): model
            for model in models
        }
        self._reading = asyncio.Lock()
        self._read_at = float("-inf")
        self._nodes: list[NodeInfo] = []

    @property
    def ids(self) -> list[str]:
        return list(self._by_id)

    def find(self, name: str | None) -> tuple[str, AsyncSwarmModel]:
        """The model's id and the model, by a name as the command line takes it. No name will do where there
        is one model only. Raises ApiError."""
        if not name:
            if len(self._by_id) == 1:
                return next(iter(self._by_id.items()))
            raise ApiError(400, f"model: is required; there are {listed(self.ids)}", param="model")
        if name in self._by_id:
            return name, self._by_id[name]
        try:
            wanted = ModelName.parse(name)
        except UsageError:
            raise self._unknown(name) from None
        fits = {model_id: model for model_id, model in self._by_id.items() if wanted.fits(model.model.digest)}
        near = matching(wanted.name, {model.model.name for model in fits.values()})
        found = [(model_id, model) for model_id, model in fits.items() if model.model.name in near]
        if len(found) > 1:
            raise ApiError(
                404,
                f"{name[:100]!r} may be {listed([model_id for model_id, _ in found])} here: say which",
                param="model",
                code="model_not_found",
            )
        if not found or wanted.root:
            raise self._unknown(name)
        return found[0]

    async def listing(self) -> dict[str, Any]:
        """The body of /v1/models: what can be served now, under ``unavailable`` the rest, and whether peers
        may be missing. Raises NetworkError."""
        serving = by_model(await self._all_nodes())
        models: list[dict[str, Any]] = []
        unavailable: list[dict[str, Any]] = []
        for model_id, model in self._by_id.items():
            entry = self._entry(model_id, model, _coverage(serving, model.model))
            (models if entry["swarm"]["available"] else unavailable).append(entry)
        offered = {model.model.digest for model in self._by_id.values()}
        others = [model_of(found) for digest, found in serving.items() if digest not in offered]
        others = sorted(others, key=lambda ref: (-len(serving[ref.digest]), str(ref)))[:MAX_OTHERS]
        unavailable += (
            {
                "id": str(ref),
                "object": "model",
                "swarm": {**self._swarm(ref, _coverage(serving, ref)), "available": False},
                "reason": "the swarm serves blocks of it, but this gateway was not started with it",
            }
            for ref in sorted(others, key=str)
        )
        alone = self._directory.is_alone
        return {"object": "list", "data": models, "unavailable": unavailable, "alone": alone}

    async def served(self) -> list[Offered]:
        """The models that have all their blocks served now. Raises NetworkError."""
        serving = by_model(await self._all_nodes())
        return [
            Offered(model_id, model, self._created)
            for model_id, model in self._by_id.items()
            if not _coverage(serving, model.model).missing
        ]

    def offered(self, name: str | None) -> Offered:
        """Whether it can be served now or not. Raises ApiError."""
        return Offered(*self.find(name), self._created)

    async def one(self, name: str) -> dict[str, Any]:
        """The body of /v1/models/NAME, whether it can be served now or not."""
        model_id, model = self.find(name)
        serving = by_model(await self._all_nodes())
        return self._entry(model_id, model, _coverage(serving, model.model))

    def _entry(self, model_id: str, model: AsyncSwarmModel, coverage: Coverage) -> dict[str, Any]:
        return {
            "id": model_id,
            "object": "model",
            "created": self._created,
            "owned_by": "swarm",
            "max_model_len": model.context,
            "default_sampling": dict(model.chat_sampling),
            "swarm": self._swarm(model.model, coverage),
        }

    def _swarm(self, ref: ModelRef, coverage: Coverage) -> dict[str, Any]:
        missing = [str(span) for span in coverage.missing]
        return {
            "digest": ref.digest,
            "n_blocks": ref.n_blocks,
            "nodes": coverage.nodes,
            "available": not missing,
            "missing_blocks": missing,
            "loading": [
                {"peer_id": node.peer_id, "name": node.name, "blocks": str(node.span)}
                for node in coverage.loading[:MAX_LOADING]
            ],
            "serve_commands": serve_commands(missing, ref.name, self.initial_peers),
        }

    async def _all_nodes(self) -> list[NodeInfo]:
        async with self._reading:  # those who ask meanwhile get the same answer
            if time.monotonic() - self._read_at > FRESH_S:
                self._nodes = await self._directory.all_nodes()
                self._read_at = time.monotonic()
            return self._nodes

    def _unknown(self, name: str) -> ApiError:
        shown = name[:100]
        advice = did_you_mean(shown, self.ids, "there are")
        return ApiError(
            404, f"there is no model {shown!r} here; {advice}", param="model", code="model_not_found"
        )


def _coverage(serving: Mapping[str, Sequence[NodeInfo]], ref: ModelRef) -> Coverage:
    """``serving``: nodes by the digest of their model."""
    nodes = serving.get(ref.digest, ())
    online = [node for node in nodes if node.state is NodeState.ONLINE]
    loading = tuple(node for node in nodes if node.state is NodeState.JOINING)
    return Coverage(len(online), missing_blocks(online, ref.n_blocks), loading)
