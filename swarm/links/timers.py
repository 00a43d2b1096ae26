"""When the peer of a link is asked, and when it counts as gone. Sans-IO: callers bring the time.

A peer is waited for while a session wants something of it. After ``ping_after_s`` of that it is asked, by
PING. It is gone when it stays silent for ``answer_within_s`` after the question, or sends less than 4 KiB/s:

    quiet ──waits──> asked ──silent──> gone
      ^                │ │               ^
      └────heard───────┘ └─> alone ──────┘     all links are silent at once: this side's network is away

Silence is a peer's fault only while others are heard. When every link falls silent together, all of them wait
for the network; when one is heard again, the others have as long again. Silence while this process was
blocked, or the computer slept, means nothing: what the peer said then is not read yet. So a peer is gone only
if a second look, a moment after the first, finds the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from ..timeouts import LINE_TURN_S, Patience, is_trickle, shared_line_s

SLOW_LINE_BYTES_PER_S = 1.25e6
"""A PING may wait behind what was posted before it, which goes at 10 Mbit/s on a slow line."""
SLOW_LINE_BYTES = 1024 * 1024
"""A PING is given time for at most this many bytes before it."""
NEWEST_WEIGHT = 0.25
"""The weight of a new round trip in the moving average, and of its difference in that of the jitter."""
JITTERS = 4.0
"""Round trips longer than the average by this many usual differences are rare (RFC 6298)."""
LONGEST_PONG_S = 10.0


class RoundTrips:
    """How long a peer usually takes to answer, and how long it may: the estimator of TCP (RFC 6298), made of
    moving averages over the round trips. ``mean_s`` is 0 before the first."""

    def __init__(self) -> None:
        self.mean_s = 0.0
        self._jitter_s = 0.0

    def measured(self, seconds: float) -> None:
        if not self.mean_s:
            self.mean_s = seconds
            return
        difference = seconds - self.mean_s
        self.mean_s += NEWEST_WEIGHT * difference
        self._jitter_s += NEWEST_WEIGHT * (abs(difference) - self._jitter_s)

    def answer_within(self, least_s: float, posted_bytes: int) -> float:
        """Seconds for an answer: a usual round trip, at least ``least_s``, and the time of the bytes that
        were posted before the question."""
        usual = min(LONGEST_PONG_S, 2 * self.mean_s + JITTERS * self._jitter_s)
        behind = min(posted_bytes, SLOW_LINE_BYTES) / SLOW_LINE_BYTES_PER_S
        return max(least_s, usual) + behind


IDLE_S = 5.0
"""Seconds that a link outlives its last session: the next turn of a chat, or a repair, finds it open."""
LATE_S = 0.1
"""Seconds by which a look may be late. A later one found the event loop blocked."""
SECOND_LOOK_S = LATE_S / 2
"""Seconds after a look that may have been a little late until what has come meanwhile is read."""
SLEPT_S = 1.0
"""If the wall clock ran this many seconds further than ours, the computer was asleep."""
KEEP_ALIVE_S = 30.0
"""Seconds between PINGs on a link whose sessions wait for nothing, for example while a reader pauses."""
OWN_LOSS_LOOK_S = 0.1
"""Seconds between looks whether a peer is heard again."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What came from the peer. ``at``: when its last bytes came. ``received``: all its bytes so far."""

    at: float
    received: int


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Look again in ``after_s`` seconds. ``ping``: ask the peer, without its sessions, first."""

    after_s: float
    ping: bool = False


@dataclass(frozen=True, slots=True)
class AskNow:
    """Ask the peer, and where the requests of its sessions are. Other silent links should ask too."""


@dataclass(frozen=True, slots=True)
class Unused:
    """The link was not used for IDLE_S."""


@dataclass(frozen=True, slots=True)
class PeerGone:
    """The peer is gone. ``reason`` goes on from its name."""

    reason: str


LinkVerdict = LookAgain | AskNow | Unused | PeerGone


@dataclass(slots=True)
class _Question:
    """A PING without its PONG. The answer is missed from ``since`` on, after ``received`` bytes.
    ``of_sessions``: it asks where their requests are."""

    at: float
    since: float
    received: int
    of_sessions: bool


class LinkTimers:
    """The clocks of one link. Times are seconds of one clock that never goes back; ``wall`` is the clock on
    the wall, which goes on while the computer sleeps."""

    def __init__(self, patience: Patience, now: float, wall: float) -> None:
        self._patience = patience
        self._round_trips = RoundTrips()
        self._began = now
        self._unused_since: float | None = now
        self._nonce = 0
        self._questions: dict[int, _Question] = {}  # by nonce, the oldest first
        self._pinged_at: float | None = None  # the oldest question since which nothing was heard
        self._asked_at = 0.0  # about sessions that wait, the last time
        self._ask_again_s = patience.ping_after_s
        self._alone_since: float | None = None  # when all links had fallen silent
        self._seemed_gone = False  # at the last look
        self._excused_at = 0.0  # silence before it was this process's
        self._excused_s = 0.0  # more patience than usual, after all were silent
        self._wall_ahead = wall - now
        self._posted = 0  # bytes since the peer was heard
        self._posted_at = 0.0
        self.line_bytes_per_s = patience.line_bytes_per_s
        """What this side's line is limited to, or the peer's."""
        self._line_free_at = now  # when a limited line has taken all that was posted, at the latest
        self._behind_s = 0.0  # what was left of that at the oldest question

    @property
    def round_trip_s(self) -> float:
        """The smoothed round trip of HELLO and PINGs; 0 before the first."""
        return self._round_trips.mean_s

    @property
    def ask_again_s(self) -> float:
        """Seconds after an answer about sessions until they are asked about again, if they still wait."""
        return self._ask_again_s

    @property
    def is_asking(self) -> bool:
        """Whether a question since which nothing was heard waits for its answer."""
        return self._pinged_at is not None

    def answer_within_s(self) -> float:
        """Seconds for an answer to PING."""
        usual = self._round_trips.answer_within(self._patience.pong_within_s, self._posted)
        return max(self._excused_s, usual + self._behind_s)

    # What happens on the link.

    def used(self) -> None:
        self._unused_since = None

    def unused(self, now: float) -> None:
        self._unused_since = now

    def posted(self, size: int, now: float, heard_at: float) -> None:
        """``size`` bytes were sent, after the peer's last bytes came at ``heard_at``. Called for each
        step."""
        if self.line_bytes_per_s != inf:
            self._line_free_at = max(self._line_free_at, now) + shared_line_s(size, self.line_bytes_per_s)
        if self._posted_at < heard_at:
            self._posted, self._posted_at = 0, heard_at
        self._posted += size

    def welcomed(self, now: float, line_bytes_per_s: float = inf) -> None:
        """The peer has answered HELLO. ``line_bytes_per_s``: what it says that its line is limited to."""
        self.line_bytes_per_s = min(self.line_bytes_per_s, line_bytes_per_s)
        self._round_trips.measured(now - self._began)

    def asked(self, now: float, heard: Heard, *, of_sessions: bool = False) -> int:
        """A PING goes out now: its nonce. ``of_sessions``: it asks where their requests are."""
        self._nonce += 1
        self._questions[self._nonce] = _Question(now, now, heard.received, of_sessions)
        if self._pinged_at is None or heard.at > self._pinged_at:
            self._pinged_at = now
            if self.line_bytes_per_s != inf:
                self._behind_s = LINE_TURN_S + max(0.0, self._line_free_at - now)
        return self._nonce

    def looked_at_sessions(self, now: float, *, wait: bool) -> None:
        """The sessions were asked about, or would have been. ``wait``: some of them had a question."""
        self._asked_at = now
        self._ask_again_s = self._patience.ping_after_s / (2 if wait else 1)

    def answered(self, nonce: int, now: float) -> float | None:
        """Seconds from the PING to its PONG; None for one that was not asked for."""
        question = self._questions.pop(nonce, None)
        if question is None:
            return None
        seconds = now - question.at
        if self._alone_since is None and not self._excused_s and seconds <= self.answer_within_s():
            self._round_trips.measured(seconds)  # others waited for a network that was away
        return seconds

    # What to do about it.

    def excuse(self, now: float, wall: float, late_s: float, heard: Heard) -> LookAgain | None:
        """This process was blocked, or the computer asleep: what the peer said is not read yet, and its
        silence up to now means nothing. ``late_s``: by how much this look is late. Returns None if neither
        happened."""
        ahead, self._wall_ahead = self._wall_ahead, wall - now
        slept = self._wall_ahead - ahead > SLEPT_S
        if late_s <= LATE_S and not slept:
            return None
        self._settle(heard)  # else a question that was answered long ago would begin to wait again
        self._excused_at = now
        self._forgive(now, heard)
        if self._pinged_at is None:
            return LookAgain(SECOND_LOOK_S)
        self._pinged_at = now if slept else min(now, self._pinged_at + late_s)
        return LookAgain(SECOND_LOOK_S, ping=slept)

    def judge(
        self, now: float, heard: Heard, waiting_since: float | None, others: Iterable[float]
    ) -> LinkVerdict:
        """``waiting_since``: since when the session that has waited longest does so; None: none waits.
        ``others``: when each other peer was last heard."""
        verdict = self._judge(now, heard, waiting_since, others)
        first, self._seemed_gone = not self._seemed_gone, isinstance(verdict, PeerGone)
        return LookAgain(SECOND_LOOK_S) if self._seemed_gone and first else verdict

    def _judge(
        self, now: float, heard: Heard, waiting_since: float | None, others: Iterable[float]
    ) -> LinkVerdict:
        if self._unused_since is not None and not self._questions:
            left = self._unused_since + IDLE_S - now
            return LookAgain(left) if left > 0 else Unused()
        if self._trickles(now, heard):
            return PeerGone("sends less than 4 KiB/s and does not answer PING")
        self._settle(heard)
        if self._pinged_at is not None:
            left = self._pinged_at + self.answer_within_s() - now
            return LookAgain(left) if left > 0 else self._judge_silence(now, heard, others)
        allowed = self._patience.ping_after_s
        if waiting_since is None:
            last, allowed = heard.at, KEEP_ALIVE_S
        elif waiting_since > self._asked_at:
            last = waiting_since
        else:
            last, allowed = self._asked_at, self._ask_again_s
        quiet = now - max(last, self._excused_at)
        if quiet < allowed:
            return LookAgain(allowed - quiet)
        if any(question.of_sessions for question in self._questions.values()):
            return LookAgain(allowed)  # what it sends meanwhile stands before the answer
        return AskNow()

    def _settle(self, heard: Heard) -> None:
        """A peer that was heard after the question is not silent."""
        if self._pinged_at is not None and heard.at > self._pinged_at:
            self._pinged_at = self._alone_since = None
            self._excused_s = 0.0

    def _trickles(self, now: float, heard: Heard) -> bool:
        """The peer has sent bytes since it was asked, but too few for an answer to be on its way."""
        oldest = next(iter(self._questions.values()), None)
        if oldest is None or heard.at <= oldest.since:
            return False
        return is_trickle(heard.received - oldest.received, now - oldest.since, self.answer_within_s())

    def _judge_silence(self, now: float, heard: Heard, others: Iterable[float]) -> LinkVerdict:
        """A PING was not answered in time. That is the peer's fault, unless no other peer is heard either."""
        pinged_at = self._pinged_at or now
        theirs = list(others)
        speaking = any(at > (self._alone_since or pinged_at) for at in theirs)
        if self._alone_since is not None and speaking:  # our network is back: TCP may need as long again
            self._excused_s = now - self._alone_since
            self._alone_since = self._pinged_at = None
            self._forgive(now, heard)
            return LookAgain(self.answer_within_s(), ping=True)
        if theirs and not speaking and now - pinged_at < self._patience.own_loss_s:
            self._alone_since = self._alone_since or now
            return LookAgain(OWN_LOSS_LOOK_S)
        silent = now - max(heard.at, pinged_at - self._patience.ping_after_s)
        return PeerGone(f"is silent for {silent:.1f} s")

    def _forgive(self, now: float, heard: Heard) -> None:
        """Answers to what was asked before may need as long again."""
        for question in self._questions.values():
            question.since, question.received = now, heard.received
