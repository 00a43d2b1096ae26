"""The gateway as a server: what it is asked, and what ends with it."""

from __future__ import annotations

from collections.abc import Sequence

from ..dashboard.dashboard import Dashboard
from ..http.listening import Listener, is_local
from ..http.server import HttpServer
from ..http.tls import Tls
from .app import create_app
from .gateway import Gateway


class GatewayServer(HttpServer):
    """``dashboard`` must be entered before."""

    def __init__(
        self,
        gateway: Gateway,
        dashboard: Dashboard,
        listener: Listener,
        *,
        max_connections: int = 4096,
        cors_origins: Sequence[str] = (),
        tls: Tls | None = None,
    ) -> None:
        self.gateway = gateway
        self._dashboard = dashboard
        local_only = is_local(listener) and not gateway.keys.needed
        app = create_app(gateway, dashboard, cors_origins=cors_origins, local_only=local_only)
        super().__init__(app, listener, max_connections=max_connections, tls=tls)

    async def stop(self, *, drain_s: float) -> None:
        self.gateway.draining = True
        self._dashboard.close()
        await super().stop(drain_s=drain_s)

    def drop_all(self) -> None:
        super().drop_all()
        self.gateway.drop_all()
