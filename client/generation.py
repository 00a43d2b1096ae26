"""The one generation loop: draft, feed, choose, show, until something ends it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from ..swarm.routing.prediction import Prediction
from ..swarm.types import ModelRef, Route
from .decoding.answer import Answer, FinishReason, TokenEvent
from .decoding.head_batch import HeadBatcher
from .decoding.sampling import ChosenToken, Sampler, TokenRule
from .drafting.drafter import Drafter
from .drafting.flight import Came
from .drafting.source import Guesser
from .hops.trace import ChainTimings, HopTimings, PassedOver, Repair, Speculated, Timings, passed_over_dict
from .params import GenerationParams
from .routing.route_wait import Waiting
from .session.swarm_session import SwarmSession

if TYPE_CHECKING:
    from ..shards.tokenizer.tokenizer import Detokenizer


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished answer and how it came about.

    ``text``: without special tokens and without the ``stop_string`` that ended it. ``token_ids``: every token
    chosen, a token that ended the answer included. ``finish_reason``: "stop" for an end-of-text token or one
    to stop at, "length" for max_new_tokens or the end of the context, "stop_string", or "unfinished" where it
    was stopped or failed. ``model``: its name and the beginning of its digest. ``route``: the hops at the
    end, ``hops`` what each of them cost, ``chains`` what their links cost, ``replaced`` as ``hops`` for those
    that left; ``predicted``: what the newest hops should cost. ``repaired``: each time that the route was
    repaired, which costs time but no token. ``cached_tokens``: how many tokens of the prompt the hops held
    from before. ``logprobs``: how likely each token was, where that was asked for. ``speculated``: what
    drafts have brought. ``passed_over``: peers that were tried and did not help.
    """

    text: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    model: str
    route: Route
    hops: tuple[HopTimings, ...]
    timings: Timings
    chains: tuple[ChainTimings, ...] = ()
    repaired: tuple[Repair, ...] = ()
    replaced: tuple[HopTimings, ...] = ()
    predicted: Prediction | None = None
    logprobs: tuple[ChosenToken, ...] | None = None
    speculated: Speculated = field(default_factory=Speculated)
    passed_over: tuple[PassedOver, ...] = ()
    stop_string: str | None = None

    @property
    def repairs(self) -> int:
        """How often the route was repaired."""
        return len(self.repaired)

    @property
    def cached_tokens(self) -> int:
        return self.timings.cached_tokens

    def as_dict(self) -> dict[str, object]:
        """The JSON that ``swarm-node generate --json`` prints."""
        return {
            "model": self.model,
            "text": self.text,
            "prompt_token_ids": list(self.prompt_token_ids),
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "route": [hop.as_dict() for hop in self.hops],
            "chains": [chain.as_dict() for chain in self.chains],
            "predicted": self.predicted.as_dict() if self.predicted is not None else None,
            "timings": self.timings.as_dict(),
            "repairs": self.repairs,
            "repaired": [repair.as_dict() for repair in self.repaired],
            "speculation": self.speculated.as_dict(len(self.token_ids), self.timings.decode_s),
            "passed_over": passed_over_dict(self.passed_over),
            "logprobs": None if self.logprobs is None else [_as_dict(choice) for choice in self.logprobs],
        }


@dataclass(slots=True)
class _Times:
    """Of an answer, on perf_counter: when it began, and when its first and its last token were chosen.
    ``local_s``: seconds of this machine's own work."""

    began: float = 0.0
    first_at: float = 0.0
    last_at: float = 0.0
    local_s: float = 0.0

    def chosen(self, came_at: float, now: float) -> None:
        """Tokens were chosen from rows that came at ``came_at``."""
        self.first_at = self.first_at or now
        self.last_at = now
        self.local_s += now - came_at


class GenerationRun:
    """One generation. Iterate ``events`` once; ``result`` is there when it has ended by itself.

    ``max_new_tokens`` of ``params`` must already fit the context. ``feed`` lets the session hold the prompt,
    and gives the hidden state of its last token (1, hidden). ``guide`` opens what restricts the tokens.
    ``on_end`` is called once, however it ends.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        params: GenerationParams,
        *,
        model: ModelRef,
        heads: HeadBatcher,
        detokenizer: Detokenizer,
        eos_ids: frozenset[int],
        session: SwarmSession,
        feed: Callable[[SwarmSession], Awaitable[np.ndarray]],
        guide: Callable[[], Awaitable[TokenRule]] | None = None,
        draft_model: Guesser | None = None,
        on_end: Callable[[GenerationRun], None] | None = None,
    ) -> None:
        self.result: Generation | None = None
        self._prompt = tuple(prompt)
        self._params = params
        self._model = model
        self._heads = heads
        self._detokenizer = detokenizer
        self._eos_ids = (frozenset() if params.ignore_eos else eos_ids) | frozenset(params.stop_token_ids)
        self._session = session
        self._feed = feed
        self._guide = guide
        self._draft_model = draft_model
        self._on_end = on_end
        self._answer: Answer | None = None
        self._drafter: Drafter | None = None
        self._times = _Times()

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        return self._prompt

    @property
    def route(self) -> Route | None:
        """The hops that compute it now, or did last; None before there are any."""
        return self._session.route if self._session.has_route else None

    @property
    def repaired(self) -> tuple[Repair, ...]:
        """The repairs of the route so far."""
        return tuple(self._session.repaired)

    @property
    def waiting(self) -> Waiting | None:
        """What it waits for now; None while it goes on."""
        return self._session.waiting

    @property
    def so_far(self) -> Generation | None:
        """The answer up to now, or to where it was stopped; None before its first token."""
        if self._answer is None or not self._answer.choices:
            return None
        return self._made(self._answer)

    async def events(self) -> AsyncGenerator[TokenEvent, None]:
        """The answer, token by token; ``result`` is there before the last of them is.

        However the iteration ends (closed, cancelled, failed), the hops' sessions are freed at once.
        """
        answer = Answer(self._detokenizer, self._eos_ids, self._params.stop, self._params.max_new_tokens)
        self._answer, session = answer, self._session
        times = self._times = _Times(perf_counter())
        deciding = False
        try:
            guide = await self._guide() if self._guide is not None else None  # refused before it costs a hop
            sampler = Sampler(self._params.sampling, self._prompt, guide)
            drafter = self._drafter = self._drafting()
            await drafter.read()
            came = Came(await self._feed(session))
            deciding = True
            self._heads.begin()
            while True:
                came_at = perf_counter()
                chosen = await self._heads.choose(came.hidden, sampler, came.draft, came.branches)
                times.chosen(came_at, perf_counter())
                events = self._push(answer, chosen.choices, sampler)
                tokens, ended = [event.token for event in events], answer.reason is not None
                if ended:
                    session.close()  # before the last token is shown: nothing more is needed of the hops
                drafter.chosen(session, tokens, came, ended=ended)
                if ended:
                    self.result = self._made(answer)
                for event in events:
                    yield event
                if ended:
                    break
                await drafter.go_on(chosen.x, sampler)
                came = await drafter.receive()
        finally:
            if deciding:
                self._heads.end()
            if self._drafter is not None:
                self._drafter.close()
            self.close()

    def close(self) -> None:
        """Free the hops' sessions. Never waits. Idempotent."""
        self._session.close()
        if self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            on_end(self)

    def _drafting(self) -> Drafter:
        prompt, most = self._prompt, self._params.max_new_tokens
        speculate, model = self._params.speculate != "off", self._draft_model
        source = None
        if speculate and model is not None:
            source = model.begin(prompt, len(prompt) + most)
        return Drafter(prompt, most, self._eos_ids, source, speculate=speculate)

    @staticmethod
    def _push(answer: Answer, choices: Sequence[ChosenToken], sampler: Sampler) -> list[TokenEvent]:
        """Up to where the answer ends."""
        return [
            answer.push(choice, last=choice is choices[-1] and sampler.is_over)
            for choice in choices
            if answer.reason is None
        ]

    def _made(self, answer: Answer) -> Generation:
        """What there is of it now."""
        session, times, drafter = self._session, self._times, self._drafter
        timings = Timings(
            route_s=session.route_s,
            prefill_s=max(0.0, times.first_at - times.began - session.route_s),
            decode_s=times.last_at - times.first_at,
            local_s=times.local_s,
            repair_s=session.repair_s,
            prompt_tokens=len(self._prompt),
            new_tokens=len(answer.choices),
            cached_tokens=session.cached_tokens,
        )
        return Generation(
            text=answer.text,
            prompt_token_ids=self._prompt,
            token_ids=answer.token_ids,
            finish_reason=answer.reason or "unfinished",
            model=str(self._model),
            route=session.route,
            hops=session.hops,
            timings=timings,
            chains=session.chains,
            repaired=tuple(session.repaired),
            replaced=session.replaced,
            predicted=session.predicted,
            logprobs=tuple(answer.choices) if answer.choices[0].logprob is not None else None,
            speculated=drafter.speculated if drafter is not None else Speculated(),
            passed_over=session.passed_over,
            stop_string=answer.stop_string,
        )


def _as_dict(choice: ChosenToken) -> dict[str, object]:
    return {"token": choice.token, "logprob": choice.logprob, "top": [list(pair) for pair in choice.top]}
