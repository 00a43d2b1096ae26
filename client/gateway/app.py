"""The gateway as an ASGI application: its paths, and which callers it answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from ..http.call import HttpCall
from ..http.endpoint import Endpoint, Handler
from ..http.errors import ApiError
from ..http.form import ReplyForm
from ..pages.pages import PREFIX, page, send_file
from .gateway import Gateway
from .openai.form import OPENAI
from .openai.requests import read_chat, read_completion
from .openai.writers import ChatWriter, CompletionWriter


def create_app(gateway: Gateway, *, cors_origins: Sequence[str] = (), local_only: bool = False) -> ASGIApp:
    """``local_only``: answer only requests that name this computer by a local name. Otherwise a web page
    elsewhere could point a name of its own here, and ask."""

    def route(path: str, method: str, handler: Handler, form: ReplyForm | None = None) -> Route:
        return Route(path, endpoint(path, method, handler, form))

    def endpoint(path: str, method: str, handler: Handler, form: ReplyForm | None = None) -> Endpoint:
        ended = partial(gateway.figures.requested, path)
        return Endpoint(method, handler, gateway.limits.stall_s, local_only, form, ended)

    router = Router(
        [
            route("/", "GET", page("chat/index.html")),
            route(f"{PREFIX}/{{file:path}}", "GET", send_file),
            route("/health", "GET", gateway.health),
            route("/ready", "GET", gateway.ready),
            route("/v1/models", "GET", gateway.models),
            route("/v1/models/{name:path}", "GET", gateway.model),
            route("/v1/chat/completions", "POST", gateway.answers(read_chat, ChatWriter), OPENAI),
            route("/v1/completions", "POST", gateway.answers(read_completion, CompletionWriter), OPENAI),
        ],
        default=endpoint("", "", _no_such_path),
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


async def _no_such_path(call: HttpCall) -> None:
    raise ApiError(
        404,
        f"there is nothing at {call.scope['path'][:200]}; "
        "see /v1/models, /v1/chat/completions and /v1/completions",
        code="not_found",
    )
