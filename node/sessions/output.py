"""Where a session's results go: to its client, to the next hop of its route, or nowhere.

An ``Output`` has four states. Each says what becomes of a result that is computed meanwhile:

    CLIENT    the client gets it, as RESULT
    HELD      it is kept here: a next hop is being connected, or the journal is being replayed
    NEXT_HOP  the next hop gets it, as STEP
    LOST      it is dropped: the next hop is lost, or the session is closed; the journal has its rows

Only the ``Output`` changes its state:

    CLIENT, NEXT_HOP, LOST or HELD → HELD    REPLAY comes; what was held is dropped, as the journal has it
    HELD → NEXT_HOP                          the next hop is connected, and has what the journal had to give
    HELD → CLIENT                            the next hop of OPEN cannot be reached, or REPLAY named none
    HELD or NEXT_HOP → LOST                  the next hop fails, or the session is closed

Results of void steps go nowhere: the session sends none on, and those that are held here go (``drop_held``).

Results that were held leave first, in their order. To send a step on is one call that writes, or joins what
others write in this turn of the event loop.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Coroutine
from dataclasses import replace
from enum import Enum, auto
from operator import attrgetter
from time import perf_counter
from typing import Protocol

from ...swarm.errors import ErrorCode, PeerError, PeerMuteError, PeerTimeoutError, SwarmError
from ...swarm.links.link import Reply, Told
from ...swarm.protocol.error_frames import error_of
from ...swarm.protocol.field_types import Downstream, Progress
from ...swarm.protocol.messages import ErrorMessage, Message, Opened, Pong, Replay, Result, Step, Want
from ...swarm.protocol.step_watch import Fault
from ...swarm.transport.direct_maddrs import way_of
from ..limits.quotas import Ledger, PeerAccount
from .journal import Journal
from .next_hops import NextHop, NextHops
from .replay import Replayer
from .step_result import StepResult

ACTIVE_S = 5.0
"""A session that sent something within this many seconds waits for a sign of life from the next hop. Steps
get no answer on this link, so a healthy hop is silent otherwise."""
_STEP = attrgetter("step")


class Client(Protocol):
    """Whom the session belongs to."""

    @property
    def max_step_tokens(self) -> int: ...

    def post(self, message: Message) -> None: ...

    async def drain(self) -> None:
        """Wait until it has taken what was posted. Raises SwarmError."""


class OutputState(Enum):
    CLIENT = auto()
    HELD = auto()
    NEXT_HOP = auto()
    LOST = auto()


class Output:
    """One session's; a ``link.LinkUser`` on the link to the next hop. ``session`` is the id on this node.
    ``chained``: the session's OPEN names a next hop, and ``open`` is about to be called."""

    def __init__(
        self, session: bytes, account: PeerAccount, ledger: Ledger, client: Client, *, chained: bool
    ) -> None:
        self._session = session
        self._account = account
        self._ledger = ledger
        self._client = client
        self._state = OutputState.HELD if chained else OutputState.CLIENT
        self._held: list[StepResult] = []
        self._hop: NextHop | None = None
        self._there = b""  # the session's id at the next hop
        self._first_step = 0  # what is numbered below was sent to another next hop
        self._sent_at = 0.0
        self._opened: Opened | None = None  # the answer to OPEN, while the client waits for it
        self._replayer: Replayer | None = None
        self._task: asyncio.Task[None] | None = None  # connects the next hop, or replays

    @property
    def is_client(self) -> bool:
        """Whether results go to the client."""
        return self._state is OutputState.CLIENT

    @property
    def is_busy(self) -> bool:
        """Whether the client waits for OPENED or REPLAYED."""
        return self._opened is not None or self._replayer is not None

    @property
    def work(self) -> int:
        """Grows while a replay goes on."""
        return 0 if self._replayer is None else self._replayer.work

    # What the session and its client want.

    def open(self, opened: Opened, target: Downstream, hops: NextHops) -> asyncio.Task[None]:
        """Connect the next hop, then answer OPEN by ``opened``, with what came of it."""
        self._opened = opened
        return self._begin(self._open(target, hops))

    def replay(
        self, request: Replay, journal: Journal | None, hops: NextHops, used: Callable[[], None]
    ) -> asyncio.Task[None]:
        """Leave the next hop at once; the task feeds the journal to another one, or to the client, and ends
        with REPLAYED or ERROR. ``used`` is called with every chunk: a session that is replayed does not
        rest."""
        self._answer_open(chained=False, reason="REPLAY came before the next hop was connected")
        self._give_up(OutputState.HELD)
        self._first_step = request.step
        send_rows = self._rows_to_client if request.to is None else self._rows_to_hop
        self._replayer = Replayer(request, journal, send_rows, used)
        return self._begin(self._replay(request, self._replayer, hops))

    def send(self, result: StepResult) -> None:
        """Let a result go where results go now."""
        if self._state is OutputState.CLIENT:
            self._client.post(result.as_result(self._session))
        elif result.step < self._first_step:
            pass  # sent again, from where the route was repaired
        elif self._state is OutputState.HELD:
            self._held.append(result)
            self._ledger.queue(self._account, 0, len(result.payload))
            if self._replayer is not None:
                self._replayer.overtaken_at(result.position)
        elif (hop := self._hop) is not None:
            if result.branches and not ("branches" in hop.features and result.tokens <= hop.max_step_tokens):
                result = result.without_branches()
            if result.tokens > hop.max_step_tokens:
                # It may have told the client otherwise. So it is lost, not the step bad: that would be our
                # fault.
                most = hop.max_step_tokens
                text = f"{hop.link.name} takes {most} tokens in a step, not {result.tokens}"
                self.fail(PeerError(text, code=ErrorCode.BAD_STEP, retriable=False))
            else:
                self._post(result.as_step(self._there))

    def drop_held(self, first: int, last: int) -> None:
        """Drop the results that are held of the steps from ``first`` to ``last``."""
        start = bisect_left(self._held, first, key=_STEP)  # in their order: a peer may ask this often
        end = bisect_right(self._held, last, lo=start, key=_STEP)
        for result in self._held[start:end]:
            self._ledger.unqueue(self._account, 0, len(result.payload))
        del self._held[start:end]

    def journal_grown(self) -> None:
        """The journal has got more rows, or is lost."""
        if self._replayer is not None:
            self._replayer.grown()

    def close(self) -> None:
        """The session is over. Idempotent."""
        if self._task is not None:
            self._task.cancel()
        self._give_up(OutputState.LOST)

    # Steps of these.

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run what connects or replays, in place of what did before."""
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(work)
        return self._task

    async def _open(self, target: Downstream, hops: NextHops) -> None:
        try:
            hop = await self._connect(hops, target)
        except SwarmError as error:
            self._answer_open(chained=False, reason=error.message)
            self._to_client()
        else:
            self._answer_open(chained=True, link_us=_round_trip_us(hop), way=_way(hop))
            self._to_next_hop()

    def _answer_open(self, *, chained: bool, link_us: int = 0, reason: str = "", way: str = "") -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            self._client.post(replace(opened, chained=chained, link_us=link_us, reason=reason, way=way))

    async def _replay(self, request: Replay, replayer: Replayer, hops: NextHops) -> None:
        began = perf_counter()
        try:
            replayer.check_journal()
            if request.to is None:
                most_tokens = self._client.max_step_tokens
            else:
                most_tokens = (await self._connect(hops, request.to)).max_step_tokens
            await replayer.send_all(most_tokens)
            link_us, way = _round_trip_us(self._hop), _way(self._hop)
            if request.to is not None:
                self._to_next_hop()  # live results follow the journal's last row
            await replayer.all_computed()
        except SwarmError as error:
            self._give_up(OutputState.LOST)
            told = _lost(self._session, error)
            if isinstance(error, PeerError) and error.code is ErrorCode.JOURNAL_LOST:
                told = ErrorMessage(self._session, None, error.code, error.message, False, error.hint)
            self._client.post(replace(told, step=request.step))
        else:
            took_us = round((perf_counter() - began) * 1e6)
            if request.to is None:
                self._to_client()
            self._client.post(replayer.replayed(took_us, link_us, way))
        finally:
            if self._replayer is replayer:
                self._replayer = None

    async def _connect(self, hops: NextHops, target: Downstream) -> NextHop:
        """Join the link to ``target``. Raises SwarmError."""
        hop = await hops.reach(target, self._account)
        if hop.link.failure is not None:
            raise hop.link.failure
        hop.join(target.session, self)
        self._hop, self._there = hop, target.session
        return hop

    async def _rows_to_client(self, step: int, position: int, tokens: int, rows: bytes) -> None:
        self._client.post(Result(self._session, step, position, tokens, rows))
        await self._client.drain()

    async def _rows_to_hop(self, step: int, position: int, tokens: int, rows: bytes) -> None:
        """It computes and answers them; they go no further."""
        self._post(Step(self._there, step, position, tokens, Want.NOTHING, hold=True, payload=rows))

    def _post(self, step: Step) -> None:
        hop = self._hop
        if hop is None:
            return
        self._sent_at = perf_counter()
        try:
            hop.post(step, self._account)
        except SwarmError as error:
            self.fail(error)
        else:
            hop.link.watch()

    # From one state to another.

    def _to_next_hop(self) -> None:
        if self._state is OutputState.HELD:  # else the hop has failed already
            self._state = OutputState.NEXT_HOP
            self._release_held()

    def _to_client(self) -> None:
        self._first_step, self._sent_at = 0, 0.0
        self._state = OutputState.CLIENT
        self._release_held()
        self._leave()

    def _give_up(self, state: OutputState) -> None:
        """Leave the next hop and drop what was held."""
        self._leave()
        self._take_held()
        self._state = state

    def _release_held(self) -> None:
        for result in self._take_held():
            self.send(result)

    def _take_held(self) -> list[StepResult]:
        held, self._held = self._held, []
        for result in held:
            self._ledger.unqueue(self._account, 0, len(result.payload))
        return held

    def _leave(self) -> None:
        hop, self._hop = self._hop, None
        if hop is not None:
            hop.leave(self._there)

    # What the link says.

    @property
    def waiting_since(self) -> float | None:
        if self._replayer is not None and (since := self._replayer.waiting_since) is not None:
            return since
        now = perf_counter()
        return now - ACTIVE_S if now - self._sent_at < ACTIVE_S else None

    def question(self) -> Told | None:
        """Only a replay waits for answers: where is the oldest of its chunks?"""
        replayer = self._replayer
        chunk = replayer.oldest if replayer is not None else None
        if replayer is None or chunk is None:
            return None

        def told(progress: Progress | None, pong: Pong) -> None:
            if self._replayer is not replayer or replayer.oldest != chunk or self._hop is None:
                return
            if (verdict := replayer.judge(progress, chunk, pong.queue_us * 1e-6)) is not None:
                kind = PeerMuteError if verdict.fault is Fault.MUTE else PeerTimeoutError
                self.fail(kind(f"{self._hop.link.name} {verdict.reason}"))

        return told

    def deliver(self, reply: Reply) -> None:
        """Results are answers to what a replay sent. An error says that the session is not ours to feed."""
        if isinstance(reply, Result):
            if self._replayer is not None:
                self._replayer.computed(reply.step)
        elif isinstance(reply, ErrorMessage):
            if reply.step is None or reply.step >= self._first_step:
                self.fail(error_of(reply, "" if self._hop is None else self._hop.link.peer_id))
        else:
            self.fail(
                PeerError(
                    f"{type(reply).__name__} is not an answer", code=ErrorCode.BAD_FRAME, retriable=False
                )
            )

    def fail(self, error: SwarmError) -> None:
        """The next hop is lost. The client is told once: by the replay, if one is under way."""
        if self._hop is None:
            return
        self._give_up(OutputState.LOST)
        if self._replayer is not None:
            self._replayer.fail(error)
        else:
            self._client.post(_lost(self._session, error))


def _way(hop: NextHop | None) -> str:
    return "" if hop is None else str(way_of(hop.link.remote_maddr))


def _round_trip_us(hop: NextHop | None) -> int:
    """As measured when the hop was connected."""
    return 0 if hop is None else round(hop.link.round_trip_s * 1e6)


def _lost(session: bytes, error: SwarmError) -> ErrorMessage:
    """What a client is told when a session's next hop cannot be reached or refuses."""
    return ErrorMessage(
        session,
        None,
        ErrorCode.DOWNSTREAM_LOST,
        f"the next hop is lost: {error.message}",
        True,
        "The session is open: name another next hop by REPLAY.",
    )
