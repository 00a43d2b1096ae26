"""The gateway as an ASGI application: its paths, and which callers it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from ..dashboard.dashboard import Dashboard
from ..dashboard.door import dashboard_handlers
from ..http.call import HttpCall
from ..http.callers import only_with_key
from ..http.endpoint import Endpoint, Handler
from ..http.errors import ApiError
from ..http.form import ReplyForm
from ..metrics.scrape import metrics_page
from ..pages.pages import page
from .anthropic.form import ANTHROPIC
from .anthropic.models import anthropic_list, anthropic_model
from .anthropic.requests import read_message
from .anthropic.writer import MessageWriter, counted
from .gateway import Gateway
from .ollama.embeddings import embed_body, old_embeddings_body, read_embed, read_old_embeddings
from .ollama.form import OLLAMA
from .ollama.models import ollama_list, ollama_model, ollama_pulled, ollama_running, read_ollama_name
from .ollama.other_paths import not_here, running, version
from .ollama.requests import read_ollama_chat, read_ollama_text
from .ollama.writer import OllamaChatWriter, OllamaTextWriter
from .openai.embeddings import embeddings_body, read_embeddings
from .openai.form import OPENAI
from .openai.requests import read_chat, read_completion
from .openai.responses.requests import response_reader
from .openai.responses.stored import StoredResponses
from .openai.responses.writer import counted as counted_input
from .openai.responses.writer import response_writer
from .openai.writers import ChatWriter, CompletionWriter

if TYPE_CHECKING:
    from ..metrics.exposition import Family

Asked = tuple[str, Handler, ReplyForm | None]
"""A method, what it calls for, and the form of errors."""


@dataclass(frozen=True, slots=True)
class _Either:
    """Two endpoints of one path: ``first`` takes the requests that ``asks`` is true of."""

    asks: Callable[[Scope], bool]
    first: ASGIApp
    other: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.first if self.asks(scope) else self.other)(scope, receive, send)


def create_app(
    gateway: Gateway, dashboard: Dashboard, *, cors_origins: Sequence[str] = (), local_only: bool = False
) -> ASGIApp:
    """``local_only``: answer only requests that name this computer by a local name. Otherwise a web page
    elsewhere could point a name of its own here, and ask."""

    def route(path: str, method: str, handler: Handler, form: ReplyForm | None = None) -> Route:
        return Route(path, endpoint(path, method, handler, form))

    def endpoint(path: str, method: str, handler: Handler, form: ReplyForm | None = None) -> Endpoint:
        ended = partial(gateway.figures.requested, path)
        return Endpoint(method, handler, gateway.limits.stall_s, local_only, form, ended)

    def either(path: str, asks: Callable[[Scope], bool], first: Asked, other: Asked) -> Route:
        return Route(path, _Either(asks, endpoint(path, *first), endpoint(path, *other)))

    figures_for = only_with_key(gateway.metrics_keys, "the figures are", "--metrics-key-file")
    seen = dashboard_handlers(dashboard, gateway.keys)
    answers, lists, shows = gateway.answers, gateway.lists, gateway.shows
    stored = StoredResponses()
    read_response = response_reader(stored)
    router = Router(
        [
            either("/", _wants_page, ("GET", page("chat/index.html"), None), ("GET", running, OLLAMA)),
            *(route(path, "GET", handler) for path, handler in seen.items()),
            route("/health", "GET", gateway.health),
            route("/ready", "GET", gateway.ready),
            route("/metrics", "GET", metrics_page(partial(_families, gateway), figures_for)),
            either(
                "/v1/models",
                _is_anthropic,
                ("GET", lists(anthropic_list), ANTHROPIC),
                ("GET", gateway.models, None),
            ),
            either(
                "/v1/models/{name:path}",
                _is_anthropic,
                ("GET", shows(anthropic_model), ANTHROPIC),
                ("GET", gateway.model, None),
            ),
            route("/v1/chat/completions", "POST", answers(read_chat, ChatWriter), OPENAI),
            route("/v1/completions", "POST", answers(read_completion, CompletionWriter), OPENAI),
            route("/v1/responses", "POST", answers(read_response, response_writer(stored)), OPENAI),
            route("/v1/responses/input_tokens", "POST", gateway.counts(read_response, counted_input), OPENAI),
            either(
                "/v1/responses/{name}",
                _deletes,
                ("DELETE", gateway.kept(stored.delete), OPENAI),
                ("GET", gateway.kept(stored.body), OPENAI),
            ),
            route("/v1/embeddings", "POST", gateway.embeds(read_embeddings, embeddings_body), OPENAI),
            route("/v1/usage", "GET", gateway.used),
            route("/v1/messages", "POST", answers(read_message, MessageWriter), ANTHROPIC),
            route("/v1/messages/count_tokens", "POST", gateway.counts(read_message, counted), ANTHROPIC),
            route("/api/chat", "POST", answers(read_ollama_chat, OllamaChatWriter), OLLAMA),
            route("/api/generate", "POST", answers(read_ollama_text, OllamaTextWriter), OLLAMA),
            route("/api/embed", "POST", gateway.embeds(read_embed, embed_body), OLLAMA),
            route(
                "/api/embeddings", "POST", gateway.embeds(read_old_embeddings, old_embeddings_body), OLLAMA
            ),
            route("/api/tags", "GET", lists(ollama_list), OLLAMA),
            route("/api/ps", "GET", lists(ollama_running), OLLAMA),
            route("/api/show", "POST", shows(ollama_model, read_ollama_name), OLLAMA),
            route("/api/pull", "POST", shows(ollama_pulled, read_ollama_name), OLLAMA),
            route("/api/version", "GET", version, OLLAMA),
            route("/api/{path:path}", "", not_here, OLLAMA),
        ],
        default=endpoint("", "", _no_such_path),
        redirect_slashes=False,
    )
    if not cors_origins:
        return router
    return CORSMiddleware(
        router,
        allow_origins=list(cors_origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["Server-Timing", "X-Swarm-Route", "X-Ignored-Fields", "Retry-After"],
    )


def _wants_page(scope: Scope) -> bool:
    """Browsers ask for a page; Ollama's clients look whether anything is here."""
    return b"text/html" in dict(scope["headers"]).get(b"accept", b"")


def _deletes(scope: Scope) -> bool:
    return scope["method"] == "DELETE"


def _is_anthropic(scope: Scope) -> bool:
    """Its clients ask for some paths that OpenAI's have too, and want them in a form of their own."""
    return b"anthropic-version" in dict(scope["headers"])


def _families(gateway: Gateway) -> Callable[[], Iterable[Family]]:
    from .metrics import families

    return partial(families, gateway)


async def _no_such_path(call: HttpCall) -> None:
    raise ApiError(
        404,
        f"there is nothing at {call.scope['path'][:200]}; "
        "see /v1/models, /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages and /api/chat",
        code="not_found",
    )
