"""From names of models and addresses of peers to a gateway that serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from os import PathLike
from typing import Any, Literal

import torch

from ...swarm import native_codec
from ...swarm.errors import UsageError
from ..async_model import AsyncSwarmModel, check_options
from ..local_model import LocalModel, OnProgress, load_local_model
from ..network import ClientNetwork, open_network
from .admission import ApiKeys
from .gateway import Gateway, GatewayLimits
from .offers import Offers
from .server import GatewayServer, listen


class _LentNetwork(ClientNetwork):
    """One network of several models; whoever opened it closes it."""

    async def close(self) -> None:
        pass


@asynccontextmanager
async def open_gateway(
    *,
    models: Sequence[str],
    initial_peers: Sequence[str],
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
) -> AsyncIterator[GatewayServer]:
    """Listen, load the models' client parts, join the swarm. ``limits``: fields of GatewayLimits.

    Raises UsageError, ModelErrors and NetworkErrors.
    """
    check_options(wire_codec, wait)
    if draft is not None and len(models) > 1:
        raise UsageError("a draft model is for one model", hint="Give one --model, or leave --draft out.")
    keys = ApiKeys() if api_key_file is None else ApiKeys.read(api_key_file)
    if threads is not None:
        torch.set_num_threads(threads)
    async with AsyncExitStack() as stack:
        listener = listen(host, port)  # first of all: what cannot listen need load nothing
        stack.callback(listener.close)
        network, loaded = await _open_all(models, initial_peers, dtype, quantize, draft, on_progress)
        stack.push_async_callback(network.close)
        opened = [
            await stack.enter_async_context(
                AsyncSwarmModel(
                    local,
                    _LentNetwork(network.transport, network.directory),
                    wire_codec=wire_codec,
                    wait=wait,
                    on_progress=on_progress,
                )
            )
            for local in loaded
        ]
        if len({model.model.digest for model in opened}) < len(opened):
            raise UsageError("a model was given twice", hint="Give each --model once.")
        offers = Offers(opened, network.directory, initial_peers=initial_peers[0])
        gateway = Gateway(offers, GatewayLimits(**(limits or {})), keys, speculate=speculate)
        server = GatewayServer(gateway, listener, max_connections=max_connections, cors_origins=cors_origins)
        yield await stack.enter_async_context(server)


async def _open_all(
    models: Sequence[str], initial_peers: Sequence[str], *options: Any
) -> tuple[ClientNetwork, list[LocalModel]]:
    """Join the swarm and load all models at once; a model that cannot be opened is the better message."""
    joining = asyncio.create_task(open_network(initial_peers))
    warming = asyncio.create_task(asyncio.to_thread(native_codec.warm_up))
    loading = [asyncio.create_task(asyncio.to_thread(_load, path, *options)) for path in models]
    try:
        await asyncio.wait((joining, warming, *loading))
        loaded = [task.result() for task in loading]
        return joining.result(), loaded
    except BaseException:
        joining.cancel()
        await asyncio.wait((joining, *loading))  # threads cannot be cancelled
        for task in loading:
            if not task.cancelled() and task.exception() is None:
                task.result().close()
        if not joining.cancelled() and joining.exception() is None:
            await joining.result().close()
        raise


def _load(
    path: str, dtype: str, quantize: str, draft: str | None, on_progress: OnProgress | None
) -> LocalModel:
    return load_local_model(
        path,
        dtype=dtype,
        quantize=quantize,
        threads=torch.get_num_threads(),
        on_progress=on_progress,
        draft=draft,
    )
