"""What the gateway does with a request once it is read: run it, and reply in one piece or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Literal, TypeVar

from ...swarm.errors import SwarmError, UsageError
from ...swarm.fairness.thread import ASKER, Asker
from ...swarm.runtime.tasks import first
from ..embedding import Embedding
from ..http.admission import ApiKeys, GatewayAdmission, RequestRate
from ..http.body import ClientGoneError, to_json
from ..http.call import HttpCall
from ..http.endpoint import Handler, group_of_client
from ..http.errors import RETRY_S, ApiError, from_swarm, said, wrong
from ..http.reading import Readings
from .answers.embeddings import embedded
from .answers.generations import Answering
from .answers.offered import Offered
from .answers.preparing import Prepared, prepared
from .answers.replies import Reply, StreamedReply, WholeReply, ignored_header
from .answers.writer import Writer
from .figures import Figures
from .models import Offers
from .requests.embedding import EmbeddingRequest
from .requests.prompts import aside
from .requests.request import ChatRequest, TextRequest
from .usage import Usage

R = TypeVar("R", bound=ChatRequest | TextRequest)
E = TypeVar("E", bound=EmbeddingRequest)

SHOWN_KEY = 8
"""Digits of a key's digest in the log."""


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """``max_running``: generations at once; ``max_requests``: answered or waiting at once, more get 429;
    ``requests_per_minute``: of one API key, or address group, 0: any; ``default_max_tokens``: of a chat
    answer that names no length; ``stall_s``: how long a reader of an answer may take nothing; ``beat_s``: how
    long a stream waits for its first token before it begins without it."""

    max_running: int = 64
    max_requests: int = 256
    requests_per_minute: float = 0.0
    default_max_tokens: int = 1024
    max_body_bytes: int = 2 * 2**20
    stall_s: float = 30.0
    beat_s: float = 1.0


class Gateway:
    """``metrics_keys``: those that may read the figures, if not ``keys``. ``draining``: no new requests are
    taken."""

    def __init__(
        self,
        offers: Offers,
        limits: GatewayLimits | None = None,
        keys: ApiKeys | None = None,
        *,
        metrics_keys: ApiKeys | None = None,
        speculate: Literal["auto", "off"] = "auto",
    ) -> None:
        self.offers = offers
        self.limits = limits or GatewayLimits()
        self.keys = keys or ApiKeys()
        self.metrics_keys = metrics_keys or self.keys
        self.admission = GatewayAdmission(self.limits.max_running, self.limits.max_requests)
        self.figures = Figures()
        self.usage = Usage()
        self.draining = False
        self._speculate = speculate
        self._readings = Readings(self.limits.max_body_bytes)
        self._rates = RequestRate(self.limits.requests_per_minute)
        self._answering: set[Answering] = set()
        self._embedding: set[asyncio.Future[None]] = set()  # an exception ends what makes vectors

    @property
    def answering(self) -> int:
        """How many requests are being answered."""
        return len(self._answering)

    def drop_all(self) -> None:
        """End every answer, and all vectors, that are being made, with an error that says why."""
        for answering in list(self._answering):
            answering.fail(_shutting_down())
        for embedding in self._embedding:
            if not embedding.done():
                embedding.set_exception(_shutting_down())
        self._readings.close()

    async def health(self, call: HttpCall) -> None:
        """Whether the process is alive, which it is while it drains too: whoever restarts processes that are
        not must let it end its answers. Needs no key and no swarm."""
        call.routine = True
        body = {"status": "draining" if self.draining else "ok", "running": self.admission.running}
        await call.reply(to_json(body))

    async def ready(self, call: HttpCall) -> None:
        """Whether a chat would be answered now: some model has all its blocks served."""
        call.routine = True
        ready = 0 if self.draining else len(await self.offers.served())
        status = "draining" if self.draining else "ready" if ready else "no model is served as a whole"
        body = {"status": status, "models_ready": ready, "models": len(self.offers.ids)}
        retry = {} if ready else {"Retry-After": str(RETRY_S)}
        await call.reply(to_json(body), status=200 if ready else 503, headers=retry)

    async def models(self, call: HttpCall) -> None:
        self._check(call)
        await call.reply(to_json(await self.offers.listing()))

    def lists(self, write: Callable[[Sequence[Offered]], object]) -> Handler:
        """A path that lists the models which can be served now."""

        async def answer(call: HttpCall) -> None:
            self._check(call)
            await call.reply(to_json(write(await self.offers.served())))

        return answer

    def shows(
        self, write: Callable[[Offered], object], read: Callable[[object], str] | None = None
    ) -> Handler:
        """A path that tells of one model: ``read`` finds its name in the body; else the path ends with
        it."""

        async def answer(call: HttpCall) -> None:
            caller = self._check(call)
            if read is None:
                name = call.scope["path_params"]["name"]
            else:
                with self._readings.of(caller) as reading:
                    name = await reading.until(call.read(self.limits.max_body_bytes, read, reading))
            offered = self.offers.offered(name)
            # Beside the event loop: what a chat template takes is asked of the template.
            await call.reply(to_json(await aside(offered.model, "model", lambda: write(offered))))

        return answer

    async def model(self, call: HttpCall) -> None:
        self._check(call)
        name = call.scope["path_params"]["name"]
        await call.reply(to_json(await (self.offers.one(name) if name else self.offers.listing())))

    def answers(self, read: Callable[[object], R], write: Callable[[R, Prepared], Writer]) -> Handler:
        """A path of an API: what reads its bodies, beside the event loop, and what writes its answers.
        ``read`` raises ApiError."""

        async def answer(call: HttpCall) -> None:
            await self._answer(call, read, write)

        return answer

    def embeds(
        self, read: Callable[[object], E], write: Callable[[E, str, Sequence[Embedding]], object]
    ) -> Handler:
        """A path that makes vectors of texts. ``write``: of the request, the model's name here, and them."""

        async def answer(call: HttpCall) -> None:
            caller = self._check(call)
            if self.draining:
                raise _shutting_down()
            with self.admission.request(caller):
                ASKER.set(Asker(caller))
                with self._readings.of(caller) as reading:
                    request = await reading.until(call.read(self.limits.max_body_bytes, read, reading))
                    ASKER.set(Asker(caller, reading.nbytes))
                model_id, model = self.offers.find(request.model)
                call.notes["model"] = model_id
                embeddings: list[Embedding] = []

                async def work() -> None:
                    embeddings.extend(await embedded(model, request, self.admission, caller))

                dropped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._embedding.add(dropped)
                try:
                    await first(work(), call.until_gone(), dropped)
                except SwarmError as error:
                    raise from_swarm(error, model.model.name, self.offers.initial_peers) from None
                finally:
                    self._embedding.discard(dropped)
                self.usage.note(caller, model_id, sum(each.tokens for each in embeddings), 0)
                body = await asyncio.to_thread(lambda: to_json(write(request, model_id, embeddings)))
                await call.reply(body, headers=ignored_header(request.ignored))

        return answer

    async def used(self, call: HttpCall) -> None:
        """What the caller has used."""
        await call.reply(to_json(self.usage.body(self._check(call))))

    def kept(self, tell: Callable[[str, str], str]) -> Handler:
        """A path that ends with the name of something that is kept for its caller. ``tell`` makes the body,
        of both."""

        async def answer(call: HttpCall) -> None:
            caller = self._check(call)
            await call.reply(tell(caller, call.scope["path_params"]["name"]))

        return answer

    def counts(self, read: Callable[[object], R], write: Callable[[int], object]) -> Handler:
        """A path that tells how many tokens the prompt of a request has. ``read`` raises ApiError."""

        async def answer(call: HttpCall) -> None:
            caller = self._check(call)
            with self.admission.request(caller):
                _, job = await self._read(call, caller, read)
            await call.reply(to_json(write(job.prompt_tokens)))

        return answer

    def _check(self, call: HttpCall) -> str:
        """The caller: a key, or an address group. Raises ApiError: 401, 429."""
        key = self.keys.check(call.headers)
        caller = key or group_of_client(call.scope.get("client"))
        call.notes["caller"] = f"key-{key[:SHOWN_KEY]}" if key else caller
        self._rates.take(caller)
        return caller

    async def _answer(
        self, call: HttpCall, read: Callable[[object], R], write: Callable[[R, Prepared], Writer]
    ) -> None:
        began = perf_counter()
        caller = self._check(call)
        if self.draining:
            raise _shutting_down()
        with self.admission.request(caller):
            request, job = await self._read(call, caller, read)
            try:
                await self._run(call, job, write(request, job), began, caller)
            except SwarmError as error:
                if isinstance(error, UsageError) and request.guide_field:
                    # All else was checked before: what is left is a guide that cannot be compiled.
                    raise wrong(request.guide_field, said(error)) from None
                raise from_swarm(error, job.model.model.name, self.offers.initial_peers) from None

    async def _read(self, call: HttpCall, caller: str, read: Callable[[object], R]) -> tuple[R, Prepared]:
        """Raises ApiError and ClientGoneError."""
        ASKER.set(Asker(caller))
        with self._readings.of(caller) as reading:
            request = await reading.until(call.read(self.limits.max_body_bytes, read, reading))
            ASKER.set(Asker(caller, reading.nbytes))
            return request, await reading.until(self._prepared(request), call.until_gone())

    async def _prepared(self, request: ChatRequest | TextRequest) -> Prepared:
        model_id, model = self.offers.find(request.model)
        return await prepared(
            request,
            model_id,
            model,
            default_tokens=self.limits.default_max_tokens,
            speculate=self._speculate,
        )

    async def _run(self, call: HttpCall, job: Prepared, writer: Writer, began: float, caller: str) -> None:
        answering = Answering(job.model, job.wanted, self.admission, caller)
        kind: type[Reply] = StreamedReply if job.request.stream else WholeReply
        reply = kind(call, job, writer, answering, began)
        self._answering.add(answering)
        call.notes["model"] = job.model_id
        operation = "chat" if isinstance(job.request, ChatRequest) else "text_completion"
        beside = [
            asyncio.create_task(_or_fail(answering, work))
            for work in (call.until_gone, partial(reply.beat, self.limits.beat_s))
        ]
        try:
            with self.figures.answer(
                answering, job.model_id, operation, job.prompt_tokens, began, call.notes
            ):
                await answering.run(reply.take)
                await reply.end()
        finally:
            for task in beside:
                task.cancel()
            self._answering.discard(answering)
            self.usage.note(caller, job.model_id, job.prompt_tokens, answering.tokens)


async def _or_fail(answering: Answering, work: Callable[[], Awaitable[None]]) -> None:
    """Do it beside the answer, which ends once its client has hung up."""
    try:
        await work()
    except ClientGoneError as gone:
        answering.fail(gone)


def _shutting_down() -> ApiError:
    return ApiError(
        503,
        "the gateway is shutting down",
        kind="server_error",
        code="shutting_down",
        headers={"Retry-After": "5"},
    )
