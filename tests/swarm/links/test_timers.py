"""A link's clocks, with a clock of the test's: who is asked, who is gone, whose silence means nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.links.timers import (
    IDLE_S,
    KEEP_ALIVE_S,
    OWN_LOSS_LOOK_S,
    SECOND_LOOK_S,
    AskNow,
    Heard,
    LinkTimers,
    LinkVerdict,
    LookAgain,
    PeerGone,
    Unused,
)
from swarm_node.swarm.timeouts import LINE_TURN_S, SLOW_WAY_BYTES_PER_S, Patience

PATIENCE = Patience(ping_after_s=0.5, pong_within_s=0.9, own_loss_s=20.0)
ENOUGH = 1 << 20
"""Bytes of an answer that is no trickle."""
READING_S = 0.01
"""From a block's end until what came meanwhile is read: timers that are due go first."""


@dataclass
class Peer:
    """A link in a world of the test's making: looks come when they are due, and PINGs are answered
    ``answers_after_s`` later, or never (None). In each of ``blocks``, from one time to another, the process
    does nothing."""

    answers_after_s: float | None = None
    waiting_since: float | None = None
    others: list[float] = field(default_factory=list)
    blocks: list[tuple[float, float]] = field(default_factory=list)
    now: float = 100.0
    asked: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.heard = Heard(self.now, 0)
        self.timers = LinkTimers(PATIENCE, self.now, self.now)
        self.timers.used()
        self._under_way: list[tuple[float, int]] = []

    def ask(self, *, of_sessions: bool) -> None:
        nonce = self.timers.asked(self.now, self.heard, of_sessions=of_sessions)
        self.asked.append(self.now)
        if self.answers_after_s is not None:
            at = self.now + self.answers_after_s
            freed = self._freed(at)
            self._under_way.append((freed if freed == at else freed + READING_S, nonce))

    def _freed(self, at: float) -> float:
        """When the process does what is due ``at``."""
        return next((end for start, end in self.blocks if start <= at < end), at)

    def _answers(self, until: float) -> None:
        for at, nonce in [each for each in self._under_way if each[0] <= until]:
            self._under_way.remove((at, nonce))
            self.heard = Heard(at, self.heard.received + ENOUGH)
            self.timers.answered(nonce, at)

    def look(self, *, late_s: float = 0.0, slept_s: float = 0.0) -> LinkVerdict:
        self._answers(self.now)
        wall = self.now + slept_s
        verdict = self.timers.excuse(self.now, wall, late_s, self.heard)
        if verdict is None:
            return self.timers.judge(self.now, self.heard, self.waiting_since, self.others)
        return verdict

    def run(self, seconds: float) -> LinkVerdict:
        """The first verdict that ends the link, or the last one within ``seconds``."""
        end = self.now + seconds
        late_s = 0.0
        while True:
            verdict = self.look(late_s=late_s)
            match verdict:
                case AskNow():
                    self.timers.looked_at_sessions(self.now, wait=self.waiting_since is not None)
                    self.ask(of_sessions=self.waiting_since is not None)
                    after_s = self.timers.answer_within_s()
                case LookAgain():
                    if verdict.ping:
                        self.ask(of_sessions=False)
                    after_s = verdict.after_s
                case _:
                    return verdict
            if self.now + after_s > end:
                self.now = end
                return verdict
            due = self.now + max(after_s, 1e-6)
            self.now = self._freed(due)
            late_s = self.now - due


def test_nobody_waits_and_nobody_is_asked_until_the_stream_has_rested_long() -> None:
    peer = Peer(answers_after_s=0.01)
    peer.run(KEEP_ALIVE_S - 0.1)
    assert peer.asked == []
    peer.run(0.2)
    assert len(peer.asked) == 1


def test_a_link_that_nobody_uses_ends() -> None:
    peer = Peer()
    peer.timers.unused(peer.now)
    assert peer.look() == LookAgain(IDLE_S)
    peer.now += IDLE_S
    assert peer.look() == Unused()


def test_a_mute_peer_is_gone_after_one_question() -> None:
    peer = Peer(waiting_since=100.0)
    verdict = peer.run(10)
    assert verdict == PeerGone("is silent for 1.5 s")
    assert len(peer.asked) == 1
    assert peer.now == pytest.approx(100 + PATIENCE.ping_after_s + PATIENCE.pong_within_s + SECOND_LOOK_S)


@given(
    answers_after_s=st.floats(1e-3, PATIENCE.pong_within_s * 0.99),
    waits=st.booleans(),
    posted=st.integers(0, 1 << 24),
    seconds=st.floats(1.0, 300.0),
)
def test_a_peer_that_answers_in_time_is_never_gone(
    answers_after_s: float, waits: bool, posted: int, seconds: float
) -> None:
    peer = Peer(answers_after_s, waiting_since=100.0 if waits else None)
    peer.timers.posted(posted, peer.now, peer.heard.at)
    assert isinstance(peer.run(seconds), LookAgain | AskNow)


@given(
    answers_after_s=st.floats(1e-3, PATIENCE.pong_within_s * 0.99),
    waits=st.booleans(),
    spells=st.lists(st.tuples(st.floats(0.2, 3.0), st.floats(0.01, 2.0)), max_size=8),
)
def test_a_process_that_stands_still_blames_no_peer_that_answers(
    answers_after_s: float, waits: bool, spells: list[tuple[float, float]]
) -> None:
    """On a link whose peer says nothing but PONG, as a next hop's. ``spells``: seconds of running, then of
    standing still."""
    peer = Peer(answers_after_s, waiting_since=100.0 if waits else None)
    at = peer.now
    for running_s, still_s in spells:
        peer.blocks.append((at + running_s, at + running_s + still_s))
        at += running_s + still_s
    assert isinstance(peer.run(60.0), LookAgain | AskNow)


def test_a_question_that_was_answered_before_a_block_does_not_wait_again() -> None:
    peer = Peer(0.001, waiting_since=100.0, blocks=[(100.9, 101.5)])
    peer.ask(of_sessions=True)
    assert isinstance(peer.run(5.0), LookAgain | AskNow)


@given(others=st.lists(st.floats(0.0, 200.0), max_size=4), posted=st.integers(0, 1 << 24))
def test_a_mute_peer_is_gone_at_last_whatever_others_do(others: list[float], posted: int) -> None:
    peer = Peer(waiting_since=100.0, others=others)
    peer.timers.posted(posted, peer.now, peer.heard.at)
    assert isinstance(peer.run(3 * PATIENCE.own_loss_s), PeerGone)


def test_while_all_are_silent_this_side_is_what_is_away() -> None:
    peer = Peer(waiting_since=100.0, others=[99.0])
    verdict = peer.run(10)
    assert verdict == LookAgain(OWN_LOSS_LOOK_S)
    peer.others = [peer.now]  # one is heard again: this one has as long as all were silent
    verdict = peer.run(5)
    assert isinstance(verdict, LookAgain)
    assert len(peer.asked) == 2
    verdict = peer.run(20)
    assert isinstance(verdict, PeerGone)


def test_the_time_of_an_outage_is_no_round_trip() -> None:
    peer = Peer(waiting_since=100.0, others=[99.0])
    nonce = peer.timers.asked(peer.now, peer.heard)
    peer.now += 5
    assert peer.look() == LookAgain(OWN_LOSS_LOOK_S)
    assert peer.timers.answered(nonce, peer.now) == 5
    assert peer.timers.round_trip_s == 0


@pytest.mark.parametrize(("late_s", "slept_s"), [(10.0, 0.0), (0.0, 3600.0)])
def test_silence_while_this_process_was_away_means_nothing(late_s: float, slept_s: float) -> None:
    peer = Peer(waiting_since=100.0)
    peer.ask(of_sessions=True)
    peer.now += 10
    assert peer.look(late_s=late_s, slept_s=slept_s) == LookAgain(SECOND_LOOK_S, ping=bool(slept_s))
    peer.now += SECOND_LOOK_S
    assert isinstance(peer.look(slept_s=slept_s), LookAgain)
    peer.now += PATIENCE.pong_within_s
    assert peer.look(slept_s=slept_s) == LookAgain(SECOND_LOOK_S)
    assert isinstance(peer.look(slept_s=slept_s), PeerGone)


def test_bytes_that_trickle_are_no_answer() -> None:
    peer = Peer(waiting_since=100.0)
    peer.ask(of_sessions=True)
    for _ in range(100):
        peer.now += 0.1
        peer.heard = Heard(peer.now, peer.heard.received + 10)
        verdict = peer.look()
        if isinstance(verdict, PeerGone):
            break
    assert verdict == PeerGone("sends less than 4 KiB/s and does not answer PING")
    assert peer.now == pytest.approx(100 + PATIENCE.pong_within_s, abs=0.2)


def test_answers_that_were_not_asked_for_are_passed_over() -> None:
    peer = Peer()
    assert peer.timers.answered(7, peer.now) is None
    nonce = peer.timers.asked(peer.now, peer.heard)
    assert peer.timers.answered(nonce, peer.now + 0.25) == 0.25
    assert peer.timers.answered(nonce, peer.now + 0.25) is None
    assert peer.timers.round_trip_s == 0.25


def test_a_limited_line_has_the_time_that_all_its_bytes_need() -> None:
    """Whichever side limits it; but a peer that claims to be slower than any line gets no more for that."""
    prompt, slow = 1_000_000, SLOW_WAY_BYTES_PER_S

    def answer_within_s(patience: Patience, welcome: float) -> float:
        timers = LinkTimers(patience, 0.0, 0.0)
        timers.welcomed(0.01, welcome)
        timers.posted(prompt, 1.0, 0.0)
        timers.posted(prompt, 2.0, 1.5)  # the peer was heard, and the first may still be on its way
        timers.asked(2.0, Heard(1.5, 100))
        return timers.answer_within_s()

    ours = replace(PATIENCE, line_bytes_per_s=2 * slow)
    assert answer_within_s(PATIENCE, inf) < 2.0
    assert answer_within_s(ours, inf) == answer_within_s(PATIENCE, 2 * slow) > 2 * prompt / (2 * slow)
    assert answer_within_s(ours, 4 * slow) == answer_within_s(ours, inf)
    assert answer_within_s(PATIENCE, 1) == answer_within_s(PATIENCE, slow)


def test_a_limited_line_that_rests_is_soon_asked() -> None:
    timers = LinkTimers(replace(PATIENCE, line_bytes_per_s=250_000.0), 0.0, 0.0)
    for second in range(100):
        timers.posted(10_000, float(second), second - 0.5)
    timers.asked(200.0, Heard(99.5, 100))
    assert timers.answer_within_s() == pytest.approx(PATIENCE.pong_within_s + LINE_TURN_S, abs=0.1)
