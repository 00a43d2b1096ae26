"""From names of models and addresses of peers to a gateway that serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from os import PathLike
from typing import Any, Literal

import torch

from ...swarm.codecs import native
from ...swarm.errors import UsageError
from ...swarm.membership.entry import SwarmEntry, swarm_entry
from ..async_model import AsyncSwarmModel, check_options
from ..local_model import LocalModel, OnProgress, hashing_told, load_local_model
from ..model_opening import Load, OnDecision, open_model
from ..network import ClientNetwork, open_network
from .gateway import Gateway, GatewayLimits
from .http.admission import ApiKeys
from .models import Offers
from .server import GatewayServer, listen


class _LentNetwork(ClientNetwork):
    """One network of several models; whoever opened it closes it."""

    async def close(self) -> None:
        pass


@asynccontextmanager
async def open_gateway(
    *,
    models: Sequence[str],
    initial_peers: Sequence[str] = (),
    swarm: str = "",
    swarm_key: str | PathLike[str] | None = None,
    join: str = "",
    mdns: bool = True,
    pure_python: bool = False,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_file: str | PathLike[str] | None = None,
    cors_origins: Sequence[str] = (),
    limits: Mapping[str, Any] | None = None,
    max_connections: int = 4096,
    wire_codec: str = "int8",
    quantize: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    wait: float = 0.0,
    speculate: Literal["auto", "off"] = "auto",
    draft: str | None = None,
    on_progress: OnProgress | None = None,
    on_decision: OnDecision | None = None,
) -> AsyncIterator[GatewayServer]:
    """Listen, load the models' client parts, join the swarm. ``limits``: fields of GatewayLimits.

    ``on_decision``: as of ``open_model``. Raises UsageError, ModelErrors and NetworkErrors.
    """
    check_options(wire_codec, wait)
    entry = swarm_entry(
        initial_peers, swarm=swarm, swarm_key=swarm_key, join=join, mdns=mdns, pure_python=pure_python
    )
    if draft is not None and len(models) > 1:
        raise UsageError("a draft model is for one model", hint="Give one --model, or leave --draft out.")
    keys = ApiKeys() if api_key_file is None else ApiKeys.read(api_key_file)
    if threads is not None:
        torch.set_num_threads(threads)
    async with AsyncExitStack() as stack:
        listener = listen(host, port)  # first of all: what cannot listen need load nothing
        stack.callback(listener.close)
        load = partial(
            load_local_model,
            dtype=dtype,
            quantize=quantize,
            threads=torch.get_num_threads(),
            on_progress=on_progress,
            draft=draft,
        )
        network, loaded = await _open_all(models, entry, load, wait, on_progress, on_decision)
        stack.push_async_callback(network.close)
        opened = [
            await stack.enter_async_context(
                AsyncSwarmModel(
                    local,
                    _LentNetwork(network.transport, network.directory, network.demand),
                    wire_codec=wire_codec,
                    wait=wait,
                    on_progress=on_progress,
                )
            )
            for local in loaded
        ]
        if len({model.model.digest for model in opened}) < len(opened):
            raise UsageError("a model was given twice", hint="Give each --model once.")
        for model in opened:
            await model.prepare_guides()
        offers = Offers(
            opened, network.directory, initial_peers=entry.initial_peers[0] if entry.initial_peers else ""
        )
        gateway = Gateway(offers, GatewayLimits(**(limits or {})), keys, speculate=speculate)
        server = GatewayServer(gateway, listener, max_connections=max_connections, cors_origins=cors_origins)
        yield await stack.enter_async_context(server)


async def _open_all(
    models: Sequence[str],
    entry: SwarmEntry,
    load: Load,
    wait: float,
    on_progress: OnProgress | None,
    on_decision: OnDecision | None,
) -> tuple[ClientNetwork, list[LocalModel]]:
    """Join the swarm and load all models at once, none named: the one that the swarm serves. A model that
    cannot be opened is the better message."""
    joining = asyncio.create_task(open_network(entry, on_progress))
    warming = asyncio.create_task(asyncio.to_thread(native.warm_up))
    names: list[str | None] = [*models] or [None]
    loading = [
        asyncio.create_task(
            hashing_told(
                open_model(name, joining, load, wait=wait, on_progress=on_progress, on_decision=on_decision),
                on_progress,
            )
        )
        for name in names
    ]
    try:
        await asyncio.wait((joining, warming, *loading))
        loaded = [task.result() for task in loading]
        return joining.result(), loaded
    except BaseException:
        joining.cancel()
        for task in loading:
            task.cancel()
        await asyncio.wait((joining, *loading))
        for task in loading:
            if not task.cancelled() and task.exception() is None:
                task.result().close()
        if not joining.cancelled() and joining.exception() is None:
            await joining.result().close()
        raise
