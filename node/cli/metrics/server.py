"""Health and figures of a node, or of a bootstrap node, on a port of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from starlette.routing import Route, Router

from ....client.http.admission import ApiKeys
from ....client.http.body import to_json
from ....client.http.call import HttpCall
from ....client.http.callers import only_with_key
from ....client.http.endpoint import Endpoint, Handler
from ....client.http.errors import RETRY_S, ApiError
from ....client.http.listening import is_local, listen
from ....client.http.server import HttpServer
from ....client.metrics.scrape import metrics_page

if TYPE_CHECKING:
    from ....client.metrics.exposition import Family

STALL_S = 10.0
"""A reader may take nothing for this many seconds."""
MAX_CONNECTIONS = 64


@asynccontextmanager
async def serve_metrics(
    host: str,
    port: int,
    keys: ApiKeys,
    load: Callable[[], Callable[[], Iterable[Family]]],
    state: Callable[[], tuple[str, bool]],
) -> AsyncIterator[HttpServer]:
    """/health, /ready and /metrics. The last one is for holders of one of ``keys``, or without any for this
    computer. ``load``: see ``metrics_page``. ``state``: the node's, and whether it is ready. Raises
    ListenError."""

    async def health(call: HttpCall) -> None:
        call.routine = True
        await call.reply(to_json({"status": state()[0]}))

    async def ready(call: HttpCall) -> None:
        call.routine = True
        name, is_ready = state()
        retry = {} if is_ready else {"Retry-After": str(RETRY_S)}
        body = to_json({"status": name, "ready": is_ready})
        await call.reply(body, status=200 if is_ready else 503, headers=retry)

    async with AsyncExitStack() as stack:
        listener = listen(host, port)
        stack.callback(listener.close)
        local_only = is_local(listener) and not keys.needed
        check = only_with_key(keys, "the figures are", "--metrics-key-file")

        def endpoint(method: str, handler: Handler) -> Endpoint:
            return Endpoint(method, handler, STALL_S, local_only)

        router = Router(
            [
                Route("/health", endpoint("GET", health)),
                Route("/ready", endpoint("GET", ready)),
                Route("/metrics", endpoint("GET", metrics_page(load, check))),
            ],
            default=endpoint("", _no_such_path),
            redirect_slashes=False,
        )
        yield await stack.enter_async_context(HttpServer(router, listener, max_connections=MAX_CONNECTIONS))


async def _no_such_path(call: HttpCall) -> None:
    path = call.scope["path"][:200]
    raise ApiError(404, f"there is nothing at {path}; see /health, /ready and /metrics", code="not_found")
