"""From what a person calls a model to this machine's part of it: local files, the swarm's peers, the hub."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from os import PathLike, fspath

from ..dht.directory import ALONE_S, Directory
from ..shards.checkpoint.known_models import KnownModels, default_known
from ..shards.checkpoint.local_models import LocalModels, weights_folder
from ..shards.checkpoint.lookup import ModelLocation, ModelNotFoundError, Source, find_local, resolve_model
from ..shards.checkpoint.name_decision import NameDecision
from ..shards.checkpoint.stored import IncompleteError
from ..shards.pieces.cache import PieceCache
from ..shards.pieces.file_hashes import stop_hashing
from ..swarm.errors import CheckpointError, LocalProtocolError, ModelMismatchError, NetworkError
from ..swarm.names import DIGEST_CHARS, ModelName
from ..swarm.naming.witnesses import Witnesses
from ..swarm.placement.demand import WantedModel
from .local_model import LocalModel, OnProgress, progress_lines
from .network import ClientNetwork
from .routing.demand import DemandTeller

POLL_S = 1.0
"""Seconds between looks for a model that no node serves yet."""

logger = logging.getLogger(__name__)

OnDecision = Callable[[NameDecision], None]
Load = Callable[[str], LocalModel]
"""Reads the client's part of the model at a path, or of a name on the hub; runs in a thread."""
Fetch = Callable[[ModelLocation, ClientNetwork, OnProgress | None], Awaitable[str]]
"""Gets the client's part of one of the swarm's models from peers; returns where it then is."""


async def fetch_client_part(
    location: ModelLocation, network: ClientNetwork, on_progress: OnProgress | None, *, next_bytes: int = 0
) -> str:
    """Returns what ``open_checkpoint`` takes. Embedding, final norm, head and tokenizer are then in the cache
    of this machine, where they are found the next time. ``next_bytes``: as of ``ModelFetch.fetch``. Raises
    ModelError, NetworkError."""
    from ..shards.transfer.fetch import fetch_model  # here: most clients have their model

    model = location.ref
    if model is None:
        raise LocalProtocolError("a model of the swarm without its digest")

    path = await fetch_model(
        model,
        blocks=None,
        client=True,
        next_bytes=next_bytes,
        nodes=partial(network.directory.nodes_of, location.refs),
        transport=network.transport,
        cache=PieceCache(weights_folder()),
        root=location.root,
        on_progress=progress_lines(on_progress),
    )
    return str(path)


async def open_model(
    model: str | PathLike[str] | None,
    joining: asyncio.Task[ClientNetwork],
    load: Load,
    *,
    fetch: Fetch = fetch_client_part,
    local_models: LocalModels | None = None,
    wait: float = 0.0,
    on_progress: OnProgress | None = None,
    on_decision: OnDecision | None = None,
    known: KnownModels | None = None,
) -> LocalModel:
    """``model`` None: the one that the swarm serves. What is here is opened while ``joining`` goes on.

    ``wait``: seconds for somebody to begin serving a model that nobody has. ``on_decision``: told how one of
    several models of the name was taken, before anything of it is used; a change is logged in any case.
    Raises what ``resolve_model`` and the loading raise.
    """

    async def load_here(path: str) -> LocalModel:
        """What peers have sent and is damaged on this disk comes from them again."""
        try:
            return await _loaded(load, path)
        except IncompleteError as damaged:
            fetched = ModelLocation(damaged.ref.name, Source.SWARM, ref=damaged.ref, root=damaged.root)
        joined = await asyncio.shield(joining)
        return await _loaded(load, await joined.demand.keep(fetch(fetched, joined, on_progress)))

    known = known or default_known()
    location = (
        None if model is None else await asyncio.to_thread(find_local, fspath(model), local_models, known)
    )
    if location is not None:
        return await load_here(location.path)
    network = await asyncio.shield(joining)

    async def find(*, hub: bool = True) -> ModelLocation:
        found = await find_in_swarm(
            model,
            network.directory,
            network.demand,
            local_models=local_models,
            hub=hub,
            wait=wait,
            on_progress=on_progress,
            witnesses=Witnesses(network.transport),
            known=known,
        )
        if (decision := found.decision) is not None:
            if decision.is_change:
                logger.warning("event=model_changed message=%r", decision.sentence)
            if on_decision is not None:
                on_decision(decision)
        return found

    location = await find()
    if location.source is Source.HUB:
        try:
            return _remembering(_checked(await _loaded(load, location.path), location), location, known)
        except (CheckpointError, ModelMismatchError, NetworkError) as error:
            on_hub = error
        try:
            location = await find(hub=False)
        except ModelNotFoundError as nowhere:  # the hub's answer says more, what is near it we know
            raise type(on_hub)(on_hub.message, hint=nowhere.hint) from None
    if location.source is Source.SWARM:
        path = await network.demand.keep(fetch(location, network, on_progress))
        return _remembering(_checked(await _loaded(load, path), location), location, known)
    return await load_here(location.path)


async def find_in_swarm(
    model: str | PathLike[str] | None,
    directory: Directory,
    demand: DemandTeller,
    *,
    local_models: LocalModels | None = None,
    hub: bool = True,
    wait: float = 0.0,
    on_progress: OnProgress | None = None,
    witnesses: Witnesses | None = None,
    known: KnownModels | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> ModelLocation:
    """Where the model is. A model that no peer has is asked for, and waited for as long as ``wait`` says.
    ``hub``: whether what the hub may have counts."""
    began, missed = clock(), None
    while True:
        try:
            location = await resolve_model(
                model, directory, local_models, hub=hub, witnesses=witnesses, known=known
            )
        except NetworkError:
            if clock() >= began + max(wait, ALONE_S):
                raise
            await sleep(POLL_S)
            continue
        except ModelNotFoundError as error:
            if error.wanted is not None:
                missed = wanted_model(error.wanted)
                demand.miss(missed)
            left = began + max(wait, ALONE_S if directory.is_alone else 0.0) - clock()
            if left <= 0:
                if missed is not None and not wait:
                    error.hint += (
                        " Idle nodes are asked for it now: wait for one (--wait SECONDS, in Python wait=)."
                    )
                raise
            if on_progress is not None:
                name = "a model" if missed is None else f"{missed}"
                on_progress(f"Nobody serves {name} yet; idle nodes are asked ({left:.0f} s left)")
            await sleep(min(POLL_S, left))
            continue
        if missed is not None:
            if location.ref is not None:  # it has begun: missed until a route covers it
                demand.miss(WantedModel(location.ref.name, location.ref.digest))
            demand.found(missed)
        return location


def wanted_model(name: ModelName) -> WantedModel:
    """What a person's text asks the swarm for. The first characters of a digest are left out, as they do not
    name it to others."""
    return WantedModel(name.name, name.digest if len(name.digest) == DIGEST_CHARS else "")


async def _loaded(load: Load, path: str) -> LocalModel:
    """A thread cannot be cancelled. So where this is, what the thread opens is closed."""
    thread = asyncio.ensure_future(asyncio.to_thread(load, path))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        stop_hashing()
        await asyncio.wait([thread])
        if thread.exception() is None:
            thread.result().close()
        raise


def _remembering(local: LocalModel, location: ModelLocation, known: KnownModels) -> LocalModel:
    """``answered`` writes down that the name meant this model here."""
    return replace(local, answered=partial(known.note_used, location.called, local.ref.digest))


def _checked(local: LocalModel, location: ModelLocation) -> LocalModel:
    """With the name that the swarm has for it. What peers sent must be what they said it is; how many blocks
    it has is told by its files."""
    ref = location.ref
    if ref is None or local.ref.digest == ref.digest:
        return local if ref is None else replace(local, ref=replace(local.ref, name=ref.name))
    local.close()
    raise ModelMismatchError(
        f"what came as {ref} has the digest {local.ref.digest[:12]}",
        hint=f"Get the model elsewhere and give its path, or its weights' root: {ref.name}@sha256:...",
    )
