"""The session machine against a model that keeps the tokens themselves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from swarm_node.swarm.errors import ErrorCode, RemoteProtocolError, UsageError
from swarm_node.swarm.protocol.hop_session import MAX_VOID_RANGES, Apply, Duplicate, HopSession


def refusal(session: HopSession, step: int, position: int, tokens: int) -> ErrorCode:
    before = (session.length, session.last_step)
    with pytest.raises(RemoteProtocolError) as caught:
        session.on_step(step, position, tokens)
    assert (session.length, session.last_step) == before
    return caught.value.code


def test_prefill_in_chunks_then_decode() -> None:
    session = HopSession(10)
    assert session.on_step(0, 0, 4) == Apply(rollback_to=0)
    assert session.on_step(1, 4, 4) == Apply(rollback_to=4)
    assert session.on_step(7, 8, 1) == Apply(rollback_to=8)  # gaps in step numbers are fine
    assert (session.length, session.last_step) == (9, 7)


def test_lower_position_rolls_back() -> None:
    session = HopSession(10)
    session.on_step(0, 0, 8)
    assert session.on_step(1, 3, 2) == Apply(rollback_to=3)
    assert session.length == 5


def test_last_step_again_is_a_duplicate_only_when_all_the_same() -> None:
    session = HopSession(10)
    session.on_step(0, 0, 4)
    session.on_step(3, 4, 2)
    assert session.on_step(3, 4, 2) == Duplicate()
    assert session.length == 6
    assert refusal(session, 3, 4, 1) is ErrorCode.BAD_STEP
    assert refusal(session, 3, 3, 2) is ErrorCode.BAD_STEP
    assert refusal(session, 0, 0, 4) is ErrorCode.BAD_STEP  # an older step is no duplicate
    assert refusal(session, 2, 6, 1) is ErrorCode.BAD_STEP


def test_a_hole_and_a_full_cache_are_refused() -> None:
    session = HopSession(10)
    session.on_step(0, 0, 4)
    assert refusal(session, 1, 5, 1) is ErrorCode.BAD_STEP
    assert refusal(session, 1, 4, 7) is ErrorCode.CONTEXT_EXCEEDED
    assert session.on_step(1, 4, 6) == Apply(rollback_to=4)
    assert refusal(session, 2, 10, 1) is ErrorCode.CONTEXT_EXCEEDED


@pytest.mark.parametrize(("step", "position", "tokens"), [(-1, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, -5)])
def test_numbers_that_are_no_step(step: int, position: int, tokens: int) -> None:
    assert refusal(HopSession(10), step, position, tokens) is ErrorCode.BAD_STEP


def test_step_size_is_bounded() -> None:
    session = HopSession(10, max_step_tokens=3)
    assert refusal(session, 0, 0, 4) is ErrorCode.BAD_STEP
    assert session.on_step(0, 0, 3) == Apply(rollback_to=0)


def test_reused_prefix_is_there_from_the_start() -> None:
    session = HopSession(10, length=6)
    assert session.on_step(0, 6, 1) == Apply(rollback_to=6)
    assert session.on_step(1, 2, 1) == Apply(rollback_to=2)


@pytest.mark.parametrize(("max_tokens", "length"), [(0, 0), (5, 6), (5, -1)])
def test_impossible_sessions(max_tokens: int, length: int) -> None:
    with pytest.raises(UsageError):
        HopSession(max_tokens, length=length)


def test_void_steps_are_known_whether_they_came_or_not() -> None:
    session = HopSession(99)
    for step in range(1, 6):
        session.on_step(step, step - 1, 1)
    session.void(4, 8)
    assert [step for step in range(12) if session.is_void(step)] == [4, 5, 6, 7, 8]
    assert (session.received, session.last_step) == (3, 5)
    session.void(2, 3)
    assert session.received == 1
    session.void(0, 1)
    assert session.received == 0
    session.on_step(9, 1, 1)
    assert session.received == 9


def test_ranges_of_void_steps_are_joined_and_few() -> None:
    session = HopSession(99)
    for step in range(1, 1000):
        session.void(step, step)
    assert all(session.is_void(step) for step in range(1, 1000))
    for step in range(2000, 3000, 2):
        session.void(step, step)
    assert len(session._void) == MAX_VOID_RANGES
    assert sum(session.is_void(step) for step in range(4000)) == MAX_VOID_RANGES
    assert session.is_void(2998)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 9)), max_size=MAX_VOID_RANGES))
def test_few_ranges_are_all_known(ranges: list[tuple[int, int]]) -> None:
    session, void = HopSession(99), set()
    for first, more in ranges:
        session.void(first, first + more)
        void |= {*range(first, first + more + 1)}
    assert {step for step in range(50) if session.is_void(step)} == void


MAX_TOKENS = 24


class SessionAgainstTokens(RuleBasedStateMachine):
    """The machine beside a list of the tokens that a KV cache would hold."""

    @initialize(max_step_tokens=st.sampled_from([0, 5]))
    def open(self, max_step_tokens: int) -> None:
        self.session = HopSession(MAX_TOKENS, max_step_tokens=max_step_tokens)
        self.bound = max_step_tokens or MAX_TOKENS
        self.cache: list[int] = []  # the step number that wrote each token
        self.last: tuple[int, int, int] | None = None

    @rule(
        ahead=st.integers(-2, 3),
        position=st.integers(-1, MAX_TOKENS + 1),
        tokens=st.integers(-1, MAX_TOKENS + 1),
    )
    def any_step(self, ahead: int, position: int, tokens: int) -> None:
        self.send((self.last[0] if self.last else 0) + ahead, position, tokens)

    @rule(back=st.integers(0, 4), tokens=st.integers(1, 5))
    def sensible_step(self, back: int, tokens: int) -> None:
        self.send(self.last[0] + 1 if self.last else 0, max(0, len(self.cache) - back), tokens)

    @rule()
    def repeat(self) -> None:
        if self.last is not None:
            assert self.session.on_step(*self.last) == Duplicate()

    def send(self, step: int, position: int, tokens: int) -> None:
        request = (step, position, tokens)
        if request == self.last:
            assert self.session.on_step(*request) == Duplicate()
            return
        fits = (
            step >= 0
            and (self.last is None or step > self.last[0])
            and 0 <= position <= len(self.cache)
            and 1 <= tokens <= self.bound
        )
        if fits and position + tokens <= MAX_TOKENS:
            assert self.session.on_step(*request) == Apply(rollback_to=position)
            self.cache[position:] = [step] * tokens
            self.last = request
        else:
            code = refusal(self.session, *request)
            assert code is (ErrorCode.CONTEXT_EXCEEDED if fits else ErrorCode.BAD_STEP)

    @invariant()
    def agrees(self) -> None:
        assert self.session.length == len(self.cache) <= MAX_TOKENS
        assert self.session.last_step == (self.last[0] if self.last else None)
        assert self.cache == sorted(self.cache)  # later tokens were never written by earlier steps


SessionAgainstTokens.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSessionAgainstTokens = SessionAgainstTokens.TestCase
