"""What the gateway does with a request once it is read: run it, and reply in one piece or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, TypeVar

from ...swarm.errors import SwarmError, UsageError
from ...swarm.fairness.thread import ASKER, Asker
from ..async_model import AsyncSwarmModel
from ..guided.guide import Guide
from ..http.admission import ApiKeys, GatewayAdmission, RequestRate
from ..http.body import ClientGoneError, to_json
from ..http.call import HttpCall
from ..http.endpoint import group_of_client
from ..http.errors import RETRY_S, ApiError, from_swarm, said, wrong
from ..http.reading import Readings
from ..params import GenerateOptions
from .models import Offers
from .openai.generations import Answering
from .openai.logprobs import TokenBytes
from .openai.prompts import COMPLETION_TOKENS, chat_prompt, prompt_texts, text_prompts, wanted
from .openai.replies import PreparedRequest, Reply, StreamedReply, WholeReply
from .openai.requests import ChatRequest, CompletionRequest, read_chat, read_completion
from .openai.responses import ChatChoice, ChoiceShape, Envelope, TextChoice

Request = TypeVar("Request", ChatRequest, CompletionRequest)


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """``max_running``: generations at once; ``max_requests``: answered or waiting at once, more get 429;
    ``requests_per_minute``: of one API key, or address group, 0: any; ``default_max_tokens``: of a chat
    answer that names no length; ``stall_s``: how long a reader of an answer may take nothing."""

    max_running: int = 64
    max_requests: int = 256
    requests_per_minute: float = 0.0
    default_max_tokens: int = 1024
    max_body_bytes: int = 2 * 2**20
    stall_s: float = 30.0


class Gateway:
    """``draining``: no new requests are taken."""

    def __init__(
        self,
        offers: Offers,
        limits: GatewayLimits | None = None,
        keys: ApiKeys | None = None,
        *,
        speculate: Literal["auto", "off"] = "auto",
    ) -> None:
        self.offers = offers
        self.limits = limits or GatewayLimits()
        self.keys = keys or ApiKeys()
        self.admission = GatewayAdmission(self.limits.max_running, self.limits.max_requests)
        self.draining = False
        self._speculate = speculate
        self._readings = Readings(self.limits.max_body_bytes)
        self._rates = RequestRate(self.limits.requests_per_minute)
        self._answering: set[Answering] = set()

    @property
    def answering(self) -> int:
        """How many requests are being answered."""
        return len(self._answering)

    def drop_all(self) -> None:
        """End every answer that is being made, with an error that says why."""
        for answering in list(self._answering):
            answering.fail(_shutting_down())
        self._readings.close()

    async def health(self, call: HttpCall) -> None:
        """Whether the process is alive; needs no key and no swarm."""
        body = {"status": "draining" if self.draining else "ok", "running": self.admission.running}
        await call.reply(to_json(body), status=503 if self.draining else 200)

    async def ready(self, call: HttpCall) -> None:
        """Whether a chat would be answered now: some model has all its blocks served."""
        ready = 0 if self.draining else await self.offers.available()
        status = "draining" if self.draining else "ready" if ready else "no model is served as a whole"
        body = {"status": status, "models_ready": ready, "models": len(self.offers.ids)}
        retry = {} if ready else {"Retry-After": str(RETRY_S)}
        await call.reply(to_json(body), status=200 if ready else 503, headers=retry)

    async def models(self, call: HttpCall) -> None:
        self._check(call)
        await call.reply(to_json(await self.offers.listing()))

    async def model(self, call: HttpCall) -> None:
        self._check(call)
        name = call.scope["path_params"]["name"]
        await call.reply(to_json(await (self.offers.one(name) if name else self.offers.listing())))

    async def chat(self, call: HttpCall) -> None:
        await self._answer(call, read_chat, self._chat_job)

    async def complete(self, call: HttpCall) -> None:
        await self._answer(call, read_completion, self._completion_job)

    def _check(self, call: HttpCall) -> str:
        """The caller: a key, or an address group. Raises ApiError: 401, 429."""
        caller = self.keys.check(call.headers) or group_of_client(call.scope.get("client"))
        self._rates.take(caller)
        return caller

    async def _answer(
        self,
        call: HttpCall,
        read: Callable[[object], Request],
        prepare: Callable[[Request], Awaitable[PreparedRequest]],
    ) -> None:
        began = perf_counter()
        caller = self._check(call)
        if self.draining:
            raise _shutting_down()
        with self.admission.request(caller):
            job = await self._read(call, caller, read, prepare)
            try:
                await self._run(call, job, began, caller)
            except SwarmError as error:
                if isinstance(error, UsageError) and job.guide_field:
                    # All else was checked before: what is left is a guide that cannot be compiled.
                    raise wrong(job.guide_field, said(error)) from None
                raise from_swarm(error, job.model.model.name, self.offers.initial_peers) from None

    async def _read(
        self,
        call: HttpCall,
        caller: str,
        read: Callable[[object], Request],
        prepare: Callable[[Request], Awaitable[PreparedRequest]],
    ) -> PreparedRequest:
        """Raises ApiError and ClientGoneError."""
        ASKER.set(Asker(caller))
        with self._readings.of(caller) as reading:
            request = await reading.until(call.read(self.limits.max_body_bytes, read, reading))
            ASKER.set(Asker(caller, reading.nbytes))
            return await reading.until(prepare(request), call.until_gone())

    async def _run(self, call: HttpCall, job: PreparedRequest, began: float, caller: str) -> None:
        answering = Answering(job.model, job.wanted, self.admission, caller)
        reply: Reply = WholeReply(call, job, answering, began)
        if job.streaming is not None:
            reply = StreamedReply(call, job, answering, began, job.streaming)
        self._answering.add(answering)
        watching = asyncio.create_task(_watch(call, answering))
        try:
            await answering.run(reply.take)
            await reply.end()
        finally:
            watching.cancel()
            self._answering.discard(answering)

    def _options(self, logprobs: int | None, guide: Guide | None) -> GenerateOptions:
        return {"logprobs": logprobs, "guide": guide, "speculate": self._speculate}

    async def _chat_job(self, request: ChatRequest) -> PreparedRequest:
        model_id, model = self.offers.find(request.model)
        prompt = await chat_prompt(model, request)
        return self._job(
            request,
            model,
            [prompt],
            Envelope("chat.completion", "chatcmpl", model_id, model.model.digest),
            lambda index, token_bytes: ChatChoice(index, token_bytes, model.tokenizer.eos_ids, request.tools),
            default_tokens=self.limits.default_max_tokens,
        )

    async def _completion_job(self, request: CompletionRequest) -> PreparedRequest:
        model_id, model = self.offers.find(request.model)
        prompts = await text_prompts(model, request)
        echoes = await prompt_texts(model, request, prompts) if request.echo else [""] * len(prompts)
        n = request.sampling.n
        return self._job(
            request,
            model,
            prompts,
            Envelope("text_completion", "cmpl", model_id, model.model.digest),
            lambda index, token_bytes: TextChoice(
                index, token_bytes, model.tokenizer.eos_ids, echoes[index // n]
            ),
            default_tokens=COMPLETION_TOKENS,
        )

    def _job(
        self,
        request: ChatRequest | CompletionRequest,
        model: AsyncSwarmModel,
        prompts: Sequence[tuple[int, ...]],
        envelope: Envelope,
        shape: Callable[[int, TokenBytes | None], ChoiceShape],
        *,
        default_tokens: int,
    ) -> PreparedRequest:
        """``shape``: a choice of that number, with what tells a token's bytes where they are asked for."""
        sampling = request.sampling
        extra = self._options(request.logprobs, request.guide)
        generations = wanted(model, prompts, sampling, extra, default_tokens=default_tokens)
        token_bytes = model.tokenizer.token_bytes if request.logprobs is not None else None
        return PreparedRequest(
            model=model,
            envelope=envelope,
            wanted=generations,
            shapes=[shape(index, token_bytes) for index in range(len(generations))],
            prompt_tokens=sum(map(len, prompts)),
            n=sampling.n,
            streaming=sampling.streaming,
            guide_field=request.guide_field,
            ignored=request.ignored,
        )


async def _watch(call: HttpCall, answering: Answering) -> None:
    """End the answer once its client has hung up."""
    try:
        await call.until_gone()
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
