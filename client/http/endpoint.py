"""One path of an HTTP server: its handler, which methods and hosts it takes, and what becomes of errors."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from time import perf_counter

from starlette.types import Receive, Scope, Send

from ...swarm.errors import SwarmError
from ...swarm.transport.address_groups import host_group
from .admission import check_host
from .body import ClientGoneError
from .call import HttpCall
from .errors import ApiError, from_swarm, internal
from .form import ReplyForm

logger = logging.getLogger(__name__)

Handler = Callable[[HttpCall], Awaitable[None]]


class Endpoint:
    """An ASGI application for one path. ``method``: "" takes all. ``form``: of its errors and streams.
    ``ended`` is told of each request that is over."""

    def __init__(
        self,
        method: str,
        handler: Handler,
        stall_s: float,
        local_only: bool,
        form: ReplyForm | None = None,
        ended: Callable[[HttpCall], None] | None = None,
    ) -> None:
        self._method = method
        self._handler = handler
        self._stall_s = stall_s
        self._local_only = local_only
        self._form = form
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":  # websockets are not offered; there is no lifespan to speak of
            call = HttpCall(scope, receive, send, stall_s=self._stall_s, form=self._form)
            await answer(call, self._handle)
            if self._ended is not None:
                self._ended(call)

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


async def answer(call: HttpCall, handler: Callable[[HttpCall], Awaitable[None]]) -> None:
    """Run a handler. What it raises becomes a reply, or the last event of a stream."""
    began = perf_counter()
    try:
        try:
            await handler(call)
        except ApiError as error:
            await call.fail(error)
        except SwarmError as error:
            await call.fail(from_swarm(error))
        except ClientGoneError:
            raise
        except Exception:
            logger.exception("a request failed")
            await call.fail(internal())
    except ClientGoneError:
        pass  # nobody is there to be told
    finally:
        call.close()
    _log(call, perf_counter() - began)


def _log(call: HttpCall, seconds: float) -> None:
    """One line a request, and nothing of what it asks or is answered."""
    told: dict[str, object] = {
        "method": call.scope["method"],
        "path": call.scope["raw_path"].decode("ascii", "replace"),  # as it was sent
        "status": call.status,
        "seconds": round(seconds, 3),
        **({} if call.failure is None else {"error": call.failure.code or call.failure.kind}),
        **call.notes,
    }
    # A text with spaces in it is quoted, so that it looks like no other name and value.
    line = " ".join(f"{name}=%{'r' if len(str(value).split()) > 1 else 's'}" for name, value in told.items())
    level = logging.DEBUG if call.routine and call.failure is None else logging.INFO
    logger.log(level, f"event=request {line}", *told.values())


def group_of_client(client: tuple[str, int] | None) -> str:
    """The address group of the connected client; "" if it is not known."""
    try:
        return "" if client is None else host_group(ip_address(client[0].partition("%")[0]))
    except ValueError:
        return ""
