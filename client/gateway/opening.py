"""From names of models and addresses of peers to a gateway that serves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from os import PathLike
from typing import Any, Literal, Unpack

from ...swarm.errors import UsageError
from ..async_model import AsyncSwarmModel
from ..connecting import ClientOptions, SessionOptions, checked_entry, open_models, part
from ..dashboard.dashboard import Dashboard
from ..dashboard.picture import Complete, with_peer
from ..http.admission import ApiKeys
from ..http.listening import listen
from ..http.tls import Tls
from ..local_model import NO_DRAFT_MODEL, LocalModel
from ..network import ClientNetwork
from .gateway import Gateway, GatewayLimits
from .models import Offers
from .server import GatewayServer


class _LentNetwork(ClientNetwork):
    """One network of several models, which ``open_gateway`` closes."""

    async def close(self) -> None:
        pass


def _close_all(models: Sequence[LocalModel]) -> None:
    for model in models:
        model.close()


@asynccontextmanager
async def open_gateway(
    *,
    models: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_file: str | PathLike[str] | None = None,
    metrics_key_file: str | PathLike[str] | None = None,
    tls: Tls | None = None,
    cors_origins: Sequence[str] = (),
    limits: Mapping[str, Any] | None = None,
    max_connections: int = 4096,
    speculate: Literal["auto", "off"] = "auto",
    complete: Complete | None = None,
    **options: Unpack[ClientOptions],
) -> AsyncIterator[GatewayServer]:
    """Listen, load the models' client parts, join the swarm. ``limits``: fields of GatewayLimits;
    ``complete``: see ``dashboard.picture``; ``options`` are those of ``SwarmModel.connect``. Raises
    UsageError, ModelErrors and NetworkErrors."""
    entry = checked_entry(options)
    if options.get("draft") not in (None, NO_DRAFT_MODEL) and len(models) > 1:
        raise UsageError("a draft model is for one model", hint="Give one --model, or leave --draft out.")
    keys = ApiKeys() if api_key_file is None else ApiKeys.read(api_key_file)
    metrics_keys = None if metrics_key_file is None else ApiKeys.read(metrics_key_file)
    async with AsyncExitStack() as stack:
        listener = listen(host, port)  # first of all: what cannot listen need load nothing
        stack.callback(listener.close)
        network, loaded = await open_models(models or [None], entry, options)
        stack.push_async_callback(network.close)
        stack.callback(_close_all, loaded)  # those that have no client yet
        opened: list[AsyncSwarmModel] = []
        while loaded:
            lent = _LentNetwork(network.joined, network.demand)
            model = AsyncSwarmModel(loaded[0], lent, **part(options, SessionOptions))
            del loaded[0]
            opened.append(await stack.enter_async_context(model))
        if len({model.model.digest for model in opened}) < len(opened):
            raise UsageError("a model was given twice", hint="Give each --model once.")
        for model in opened:
            await model.read_announcements()
            await model.prepare_guides()
        through = entry.initial_peers[0] if entry.initial_peers else ""
        offers = Offers(opened, network.directory, initial_peers=through)
        gateway = Gateway(
            offers, GatewayLimits(**(limits or {})), keys, metrics_keys=metrics_keys, speculate=speculate
        )
        dashboard = Dashboard(
            network.directory,
            gateway.figures,
            complete=complete or partial(with_peer, through),
            name=entry.name,
            has_chat=True,
        )
        await stack.enter_async_context(dashboard)
        server = GatewayServer(
            gateway,
            dashboard,
            listener,
            cors_origins=cors_origins,
            max_connections=max_connections,
            tls=tls,
        )
        yield await stack.enter_async_context(server)
