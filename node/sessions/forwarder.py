"""Where a chained session's results go: on to the next hop, or to nobody while that one is lost.

Sending a decode step on is one call that writes, or joins what others write in this turn of the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

from ...swarm.errors import ErrorCode, PeerError, PeerMuteError, PeerTimeoutError, SwarmError
from ...swarm.links.link import Reply, Told
from ...swarm.protocol.error_frames import error_of
from ...swarm.protocol.messages import Downstream, ErrorMessage, Message, Pong, Progress, Result, Step, Want
from ...swarm.protocol.step_watch import Fault
from ..limits.quotas import Ledger, PeerAccount
from .next_hops import NextHop, NextHops
from .step_result import StepResult

if TYPE_CHECKING:
    from .replay import Replayer

ACTIVE_S = 5.0
"""A session that sent something within this time waits for a sign of life from the next hop. Steps get no
answer on this link, so silence is otherwise how a healthy hop looks, too."""


class Forwarder:
    """A session's place on the link to the next hop; a ``link.LinkUser``.

    ``session`` is the id on this node, ``tell`` speaks to its client. At first answers are held back, until
    ``go_live`` (or ``take_held``). ``replay``: the replay under way, which hears of everything first.
    """

    __slots__ = (
        "_account",
        "_first_step",
        "_held",
        "_hop",
        "_ledger",
        "_sent_at",
        "_session",
        "_tell",
        "_there",
        "replay",
    )

    def __init__(
        self, session: bytes, account: PeerAccount, ledger: Ledger, tell: Callable[[Message], None]
    ) -> None:
        self._session = session
        self._account = account
        self._ledger = ledger
        self._tell = tell
        self._hop: NextHop | None = None
        self._there = b""  # the session's id at the next hop
        self._held: list[StepResult] | None = []
        self._first_step = 0
        self._sent_at = 0.0
        self.replay: Replayer | None = None

    @property
    def round_trip_us(self) -> int:
        """To the next hop, as measured when it was connected."""
        return 0 if self._hop is None else round(self._hop.link.round_trip_s * 1e6)

    @property
    def max_step_tokens(self) -> int:
        return 0 if self._hop is None else self._hop.max_step_tokens

    async def connect(self, hops: NextHops, target: Downstream) -> None:
        """Join the link to ``target``. Raises SwarmError."""
        hop = await hops.reach(target, self._account)
        if hop.link.failure is not None:
            raise hop.link.failure
        hop.join(target.session, self)
        self._hop, self._there = hop, target.session

    def send(self, answer: StepResult) -> None:
        """Send a step's rows on."""
        if answer.step < self._first_step:
            return  # sent again, from where the route was mended
        if self._held is not None:
            self._held.append(answer)
            self._ledger.queue(self._account, 0, len(answer.payload))
            if self.replay is not None:
                self.replay.overtaken_at(answer.position)
            return
        hop = self._hop
        if hop is None:
            return  # lost: the journal has the rows
        if answer.tokens > hop.max_step_tokens:
            # It may have told the client otherwise. So it is lost, not the step bad: that would be our fault.
            text = f"{hop.link.name} takes {hop.max_step_tokens} tokens in a step, not {answer.tokens}"
            self.fail(PeerError(text, code=ErrorCode.BAD_STEP, retriable=False))
            return
        self._post(answer.as_step(self._there))

    def send_journal(self, step: int, position: int, tokens: int, rows: bytes) -> None:
        """Send rows of the journal, to be computed and answered without going any further."""
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

    # From one next hop to another.

    def hold_back(self, first_step: int) -> None:
        """Leave the next hop; keep what comes, numbered from ``first_step`` on, for the one after it."""
        self._leave()
        self.take_held()
        self._held = []
        self._first_step = first_step

    def go_live(self) -> None:
        """Send on what was held back, and from now on everything at once."""
        for answer in self.take_held():
            self.send(answer)

    def take_held(self) -> list[StepResult]:
        """What was held back; nothing is from now on."""
        held, self._held = self._held or [], None
        for answer in held:
            self._ledger.unqueue(self._account, 0, len(answer.payload))
        return held

    def close(self) -> None:
        """The session is over, or its results go to its client from now on. May be called again."""
        self._leave()
        self.take_held()

    def _leave(self) -> None:
        hop, self._hop = self._hop, None
        if hop is not None:
            hop.leave(self._there)

    # What the link says.

    @property
    def waiting_since(self) -> float | None:
        if self.replay is not None and (since := self.replay.waiting_since) is not None:
            return since
        now = perf_counter()
        return now - ACTIVE_S if now - self._sent_at < ACTIVE_S else None

    def question(self) -> Told | None:
        """Only a replay waits for answers: where is the oldest of its chunks?"""
        replay = self.replay
        chunk = replay.oldest if replay is not None else None
        if replay is None or chunk is None:
            return None

        def told(progress: Progress | None, pong: Pong) -> None:
            if self.replay is not replay or replay.oldest != chunk or self._hop is None:
                return
            if (verdict := replay.judge(progress, chunk, pong.queue_us * 1e-6)) is not None:
                kind = PeerMuteError if verdict.fault is Fault.MUTE else PeerTimeoutError
                self.fail(kind(f"{self._hop.link.name} {verdict.reason}"))

        return told

    def deliver(self, reply: Reply) -> None:
        """Results are answers to what a replay sent. An error says that the session is not ours to feed."""
        if isinstance(reply, Result):
            if self.replay is not None:
                self.replay.computed(reply.step)
        elif isinstance(reply, ErrorMessage):
            if reply.step is None or reply.step >= self._first_step:
                self.fail(error_of(reply, "" if self._hop is None else self._hop.link.peer_id))
        else:
            self.fail(
                PeerError(f"{type(reply).__name__} is no answer", code=ErrorCode.BAD_FRAME, retriable=False)
            )

    def fail(self, error: SwarmError) -> None:
        """The next hop is lost. The client is told once: by the replay, if one is under way."""
        if self._hop is None:
            return
        self.close()
        if self.replay is not None:
            self.replay.fail(error)
        else:
            self._tell(lost(self._session, error))


def lost(session: bytes, error: SwarmError) -> ErrorMessage:
    """What a client is told when a session's next hop cannot be reached or refuses."""
    return ErrorMessage(
        session,
        None,
        ErrorCode.DOWNSTREAM_LOST,
        f"the next hop is lost: {error.message}",
        True,
        "The session is open: name another next hop by REPLAY.",
    )
