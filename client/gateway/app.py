"""The gateway as an ASGI application: its paths, and which callers it answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from .gateway import Gateway, answer
from .http.admission import check_host
from .http.call import HttpCall
from .http.errors import ApiError
from .http.page import send_page

Handler = Callable[[HttpCall], Awaitable[None]]


def create_app(gateway: Gateway, *, cors_origins: Sequence[str] = (), local_only: bool = False) -> ASGIApp:
    """``local_only``: answer only requests that name this computer by a local name. Otherwise a web page
    elsewhere could point a name of its own here, and ask."""

    def route(path: str, method: str, handler: Handler) -> Route:
        return Route(path, _Endpoint(method, handler, gateway.limits.stall_s, local_only))

    router = Router(
        [
            route("/", "GET", send_page),
            route("/health", "GET", gateway.health),
            route("/ready", "GET", gateway.ready),
            route("/v1/models", "GET", gateway.models),
            route("/v1/models/{name:path}", "GET", gateway.model),
            route("/v1/chat/completions", "POST", gateway.chat),
            route("/v1/completions", "POST", gateway.complete),
        ],
        default=_Endpoint("", _no_such_path, gateway.limits.stall_s, local_only),
        redirect_slashes=False,
    )
    if not cors_origins:
        return router
    return CORSMiddleware(
        router,
        allow_origins=list(cors_origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["Server-Timing", "X-Swarm-Route", "X-Ignored-Fields", "Retry-After"],
    )


class _Endpoint:
    """An ASGI application for one path. ``method``: "" takes all."""

    def __init__(self, method: str, handler: Handler, stall_s: float, local_only: bool) -> None:
        self._method = method
        self._handler = handler
        self._stall_s = stall_s
        self._local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":  # websockets are not offered; there is no lifespan to speak of
            await answer(HttpCall(scope, receive, send, stall_s=self._stall_s), self._handle)

    async def _handle(self, call: HttpCall) -> None:
        method = call.scope["method"]
        if self._local_only:
            check_host(call.headers, call.scope["http_version"])
        if self._method and method != self._method and (method, self._method) != ("HEAD", "GET"):
            raise ApiError(
                405,
                f"{call.scope['path'][:200]} takes {self._method}, not {method}",
                code="method_not_allowed",
                headers={"Allow": "GET, HEAD" if self._method == "GET" else self._method},
            )
        await self._handler(call)


async def _no_such_path(call: HttpCall) -> None:
    raise ApiError(
        404,
        f"there is nothing at {call.scope['path'][:200]}; "
        "see /v1/models, /v1/chat/completions and /v1/completions",
        code="not_found",
    )
