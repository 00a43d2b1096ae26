"""The one generation loop: feed, choose, show, until something ends it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, Protocol

from torch import Tensor

from ..swarm.prediction import Prediction
from ..swarm.types import ModelRef, Route
from .head_batch import HeadBatcher
from .params import GenerationParams
from .repair import SwarmSession
from .sampling import Sampler
from .stopping import StopStrings
from .trace import ChainTimings, HopTimings, Repair, Timings

FinishReason = Literal["stop", "length", "stop_string"]


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished answer and how it came about.

    ``text``: without special tokens and without the stop string that ended it. ``token_ids``: every token
    chosen, an end-of-text token that ended the answer included. ``finish_reason``: "stop" for an end-of-text
    token, "length" for max_new_tokens or the end of the context, "stop_string". ``model``: its name and the
    beginning of its digest. ``route``: the hops at the end, ``hops`` what each of them cost, ``chains`` what
    the ways did, ``replaced`` as ``hops`` for those that left; ``predicted`` is what the newest plan of hops
    should cost. ``repaired``: each time that the route was repaired, which costs time but no token.
    ``cached_tokens``: how many tokens of the prompt the hops held from before.
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

    @property
    def repairs(self) -> int:
        """How often the route was repaired."""
        return len(self.repaired)

    @property
    def cached_tokens(self) -> int:
        return self.timings.cached_tokens

    def as_dict(self) -> dict[str, object]:
        """For JSON: what ``swarm-node generate --json`` prints."""
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
        }


class PieceDecoder(Protocol):
    """``shards.tokenizer.Detokenizer``: token ids in, whole characters out."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


class GenerationRun:
    """One generation. Iterate ``pieces`` once; ``result`` is there when it has ended by itself.

    ``max_new_tokens`` of ``params`` must already fit the context. ``on_end`` is called once, however it ends.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        params: GenerationParams,
        *,
        model: ModelRef,
        heads: HeadBatcher,
        detokenizer: PieceDecoder,
        eos_ids: frozenset[int],
        session: SwarmSession,
        on_end: Callable[[GenerationRun], None] | None = None,
    ) -> None:
        self.result: Generation | None = None
        self._prompt = tuple(prompt)
        self._params = params
        self._model = model
        self._heads = heads
        self._detokenizer = detokenizer
        self._eos_ids = frozenset() if params.ignore_eos else eos_ids
        self._session = session
        self._on_end = on_end

    @property
    def route(self) -> Route | None:
        """The hops that compute it now, or did last; None before there are any."""
        return self._session.route if self._session.has_route else None

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The answer, piece by piece: whole characters, at most one piece a token, none of them empty.

        However the iteration ends (closed, cancelled, failed), the hops' sessions are freed at once.
        """
        params, session = self._params, self._session
        sampler = Sampler(params.sampling, self._prompt)
        stops = StopStrings(params.stop)
        shown: list[str] = []
        token_ids: list[int] = []
        local_s = 0.0
        began = first_at = perf_counter()
        fed: Sequence[int] = self._prompt
        x: Tensor | None = None  # of what is fed, once it is a chosen token
        reason: FinishReason | None = None
        deciding = False
        try:
            while reason is None:
                hidden = await session.append(fed, x)  # (1, hidden)
                arrived = perf_counter()
                if not deciding:
                    deciding = True
                    self._heads.begin()
                chosen = await self._heads.choose(hidden, sampler)
                token, x = chosen.token, chosen.x
                chosen_at = perf_counter()
                local_s += chosen_at - arrived
                if not token_ids:
                    first_at = chosen_at
                token_ids.append(token)
                fed = (token,)
                piece = ""
                if token in self._eos_ids:
                    reason = "stop"
                else:
                    piece = stops.push(self._detokenizer.push(token))
                    if len(token_ids) >= params.max_new_tokens:
                        reason = "length"
                if stops.matched is None and reason is not None:
                    piece += stops.push(self._detokenizer.flush()) + stops.flush()
                if stops.matched is not None:
                    reason = "stop_string"
                if piece:
                    shown.append(piece)
                if reason is not None:
                    session.close()  # before the last piece is shown: nothing more is needed of the hops
                    timings = Timings(
                        route_s=session.route_s,
                        prefill_s=max(0.0, first_at - began - session.route_s),
                        decode_s=chosen_at - first_at,
                        local_s=local_s,
                        repair_s=session.repair_s,
                        prompt_tokens=len(self._prompt),
                        new_tokens=len(token_ids),
                        cached_tokens=session.cached_tokens,
                    )
                    self.result = self._result("".join(shown), token_ids, reason, timings)
                if piece:
                    yield piece
        finally:
            if deciding:
                self._heads.end()
            self.close()

    def close(self) -> None:
        """Free the hops' sessions. Never waits; may be called again."""
        self._session.close()
        if self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            on_end(self)

    def _result(
        self, text: str, token_ids: Sequence[int], reason: FinishReason, timings: Timings
    ) -> Generation:
        session = self._session
        return Generation(
            text=text,
            prompt_token_ids=self._prompt,
            token_ids=tuple(token_ids),
            finish_reason=reason,
            model=str(self._model),
            route=session.route,
            hops=session.hops,
            timings=timings,
            chains=session.chains,
            repaired=tuple(session.repaired),
            replaced=session.replaced,
            predicted=session.predicted,
        )
