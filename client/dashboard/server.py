"""A dashboard with a server of its own, for processes that serve nothing else over HTTP."""

from __future__ import annotations

from starlette.routing import Route, Router

from ..http.admission import ApiKeys
from ..http.call import HttpCall
from ..http.endpoint import Endpoint, Handler
from ..http.errors import ApiError
from ..http.listening import Listener, is_local
from ..http.server import HttpServer
from ..http.tls import Tls
from ..pages.pages import page
from .dashboard import Dashboard
from .door import dashboard_handlers

STALL_S = 30.0
"""Seconds for which a browser may take nothing before it is given up."""
MAX_CONNECTIONS = 256


class DashboardServer(HttpServer):
    """``dashboard`` must be entered before."""

    def __init__(
        self,
        dashboard: Dashboard,
        listener: Listener,
        keys: ApiKeys | None = None,
        *,
        tls: Tls | None = None,
    ) -> None:
        keys = keys or ApiKeys()
        local_only = is_local(listener) and not keys.needed

        def endpoint(method: str, handler: Handler) -> Endpoint:
            return Endpoint(method, handler, STALL_S, local_only)

        handlers = {"/": page("swarm/index.html"), **dashboard_handlers(dashboard, keys)}
        app = Router(
            [Route(path, endpoint("GET", handler)) for path, handler in handlers.items()],
            default=endpoint("", _no_such_path),
            redirect_slashes=False,
        )
        super().__init__(app, listener, max_connections=MAX_CONNECTIONS, tls=tls)
        self._dashboard = dashboard

    async def stop(self, *, drain_s: float) -> None:
        self._dashboard.close()
        await super().stop(drain_s=drain_s)


async def _no_such_path(call: HttpCall) -> None:
    raise ApiError(
        404, f"there is nothing at {call.scope['path'][:200]}; see /swarm and /swarm/state", code="not_found"
    )
