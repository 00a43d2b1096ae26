"""What the gateway has done since it started, and the answers that it makes now: plain numbers and names, and
nothing of what anybody asked or was answered."""

from __future__ import annotations

import secrets
import time
from asyncio import CancelledError
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ...swarm.errors import SwarmError
from ...swarm.runtime.histogram import Distribution
from ..dashboard.source import Counters, OwnWork, RunningAnswer, SeenRepair
from ..http.body import ClientGoneError
from ..http.call import HttpCall
from ..http.errors import ApiError, from_swarm
from ..streams import TextStream
from .answer_counts import AnswerCounts, AnswerTotals
from .answers.generations import Answering

LOOK_S = 1.0
"""The speed of a running answer is measured over at least this many seconds."""
KEPT_REPAIRS = 64

CLIENT_GONE = "client_gone"
"""In place of an error's code: the client hung up."""


@dataclass(frozen=True, slots=True)
class GatewayTotals:
    """``requests``: by path and status; ``failures``: by the error's code, in streams too. ``answers``: by
    model and operation, once they are over. ``tokens``: of answers, also of those that run, by model.
    ``repairs``: of routes, by model, kind and reason (``hops.trace.Repair``)."""

    requests: Mapping[tuple[str, int], int]
    failures: Mapping[str, int]
    answers: Mapping[tuple[str, str], AnswerTotals]
    tokens: Mapping[str, int]
    repairs: Mapping[tuple[str, str, str], int]


@dataclass(eq=False, slots=True)
class _Running:
    """``since`` and ``seen``: when its tokens were looked at, and how many there were; ``rate``: tokens a
    second between the last two looks, None before there were two. ``repairs``: of each stream, how many were
    noted."""

    id: str
    model: str
    answering: Answering
    began: float
    since: float
    seen: int = 0
    rate: float | None = None
    repairs: dict[TextStream, int] = field(default_factory=dict)

    def tokens_per_s(self, now: float) -> float:
        tokens, first_at = self.answering.tokens, self.answering.first_at
        if now - self.since >= LOOK_S:
            self.rate = (tokens - self.seen) / (now - self.since)
            self.since, self.seen = now, tokens
        if self.rate is not None:
            return self.rate
        return 0.0 if first_at is None or now <= first_at else (tokens - 1) / (now - first_at)


class Figures:
    """A gateway's: a ``dashboard.source.Source`` too. ``clock`` as perf_counter, ``wall`` as time.time."""

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, wall: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._requests: Counter[tuple[str, int]] = Counter()
        self._failures: Counter[str] = Counter()
        self._answers: dict[tuple[str, str], AnswerCounts] = {}
        self._tokens: Counter[str] = Counter()
        self._repairs: Counter[tuple[str, str, str]] = Counter()
        self._running: dict[str, _Running] = {}
        self._seen_repairs: deque[SeenRepair] = deque(maxlen=KEPT_REPAIRS)

    def requested(self, path: str, call: HttpCall) -> None:
        """A request at ``path``, as the gateway spells it, is over."""
        self._requests[path, call.status] += 1
        if call.failure is not None:
            self._failures[code_of(call.failure)] += 1

    @contextmanager
    def answer(
        self,
        answering: Answering,
        model: str,
        operation: str,
        prompt_tokens: int,
        began: float,
        notes: MutableMapping[str, object],
    ) -> Iterator[None]:
        """Inside, ``answering`` runs. ``began``: its request, on the clock. ``notes`` gets what the log says
        of it."""
        running = _Running(secrets.token_hex(4), model, answering, began, since=self._clock())
        self._running[running.id] = running
        error = ""
        try:
            yield
        except BaseException as raised:
            error = code_of(raised)
            raise
        finally:
            del self._running[running.id]
            self._note_repairs(running)
            self._end(running, operation, prompt_tokens, error, notes)

    def _end(
        self,
        running: _Running,
        operation: str,
        prompt_tokens: int,
        error: str,
        notes: MutableMapping[str, object],
    ) -> None:
        answering = running.answering
        answers = self._answers.setdefault((running.model, operation), AnswerCounts())
        answers.ended(self._clock() - running.began, error)
        self._tokens[running.model] += answering.tokens
        results = [result for stream in answering.streams if (result := stream.so_far) is not None]
        if answering.first_at is not None:
            answers.began(answering.first_at - running.began, prompt_tokens)
            notes["first_token_s"] = round(answering.first_at - running.began, 3)
        for result in results:
            answers.made(result)
        notes["prompt_tokens"] = prompt_tokens
        notes["tokens"] = sum(len(result.token_ids) for result in results)
        notes["queued_s"] = round(answering.queued_s, 3)
        notes["repairs"] = sum(running.repairs.values())
        notes["finish"] = error or ",".join(dict.fromkeys(result.finish_reason for result in results))

    def totals(self) -> GatewayTotals:
        self._look()
        return GatewayTotals(
            dict(self._requests),
            dict(self._failures),
            {key: answers.totals() for key, answers in self._answers.items()},
            self._tokens + self._tokens_that_run(),
            dict(self._repairs),
        )

    # What a dashboard asks for.

    def answers(self) -> Sequence[RunningAnswer]:
        """Those that are being made now."""
        now = self._clock()
        self._look()
        return [_shown(running, now) for running in self._running.values()]

    def repairs(self) -> Sequence[SeenRepair]:
        """The last KEPT_REPAIRS, the oldest first."""
        self._look()
        return list(self._seen_repairs)

    def counters(self) -> Counters:
        self._look()
        totals = [answers.totals() for answers in self._answers.values()]
        ended = Counter[str]()
        for each in totals:
            ended.update({error: seconds.count for error, seconds in each.seconds.items()})
        return Counters(
            answers=ended.total(),
            failed=ended.total() - ended[""] - ended[CLIENT_GONE],
            repairs=self._repairs.total(),
            prompt_tokens=round(sum(each.prompt.total for each in totals)),
            tokens=round(sum(each.answer.total for each in totals)),
            first_token_s=Distribution.of_all(each.first_token_s for each in totals),
            token_s=Distribution.of_all(each.token_s for each in totals),
        )

    def own(self) -> OwnWork | None:
        """A gateway serves no blocks."""
        return None

    def _tokens_that_run(self) -> Counter[str]:
        """By model."""
        tokens: Counter[str] = Counter()
        for running in self._running.values():
            tokens[running.model] += running.answering.tokens
        return tokens

    # Repairs.

    def _look(self) -> None:
        for running in self._running.values():
            self._note_repairs(running)

    def _note_repairs(self, running: _Running) -> None:
        """Those that are new since the last look."""
        for stream in running.answering.streams:
            repaired = stream.repaired
            for repair in repaired[running.repairs.get(stream, 0) :]:
                self._repairs[running.model, repair.kind, repair.reason] += 1
                self._seen_repairs.append(
                    SeenRepair(
                        id=f"{running.id}/{self._repairs.total()}",
                        at=self._wall(),
                        answer=running.id,
                        model=running.model,
                        kind=repair.kind,
                        lost=repair.lost,
                        cause=repair.cause,
                        seconds=repair.seconds,
                    )
                )
            running.repairs[stream] = len(repaired)


def code_of(error: BaseException) -> str:
    """One of a few words for what ended a request."""
    match error:
        case ApiError():
            return error.code or error.kind
        case SwarmError():
            return code_of(from_swarm(error))
        case ClientGoneError() | CancelledError():
            return CLIENT_GONE
        case _:
            return "internal_error"


def _shown(running: _Running, now: float) -> RunningAnswer:
    answering = running.answering
    waits = [waiting.text for stream in answering.streams if (waiting := stream.waiting) is not None]
    route = answering.route
    return RunningAnswer(
        id=running.id,
        model=running.model,
        hops=() if route is None else tuple(route.hops),
        age_s=now - running.began,
        tokens=answering.tokens,
        tokens_per_s=running.tokens_per_s(now),
        waiting=waits[0] if waits else "" if answering.streams else "for its turn",
        repairs=sum(running.repairs.values()),
    )
