"""What is said in one turn: in its order, in few frames, and in none that the peer does not take."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.errors import LocalProtocolError
from swarm_node.swarm.links.outbox import GROUP_BYTES, MEMBER_BYTES, Outbox
from swarm_node.swarm.protocol.field_types import MAX_BRANCHES, MAX_CHAIN, MAX_MEMBERS
from swarm_node.swarm.protocol.messages import (
    Close,
    Message,
    Ping,
    Result,
    Results,
    Step,
    Steps,
    Want,
    decode,
)
from swarm_node.swarm.protocol.wire import DEFAULT_MAX_FRAME, FrameParser


def session(number: int) -> bytes:
    return number.to_bytes(16)


def step(number: int, size: int = 40, tokens: int = 1, hops: int = 0) -> Step:
    spent = ((2**31, 2**31, 2**31, 2**16),) * hops
    return Step(session(number), 3, 5, tokens, Want.LAST, spent=spent, payload=bytes(size * tokens))


def said(outbox: Outbox) -> list[Any]:
    """The messages of its frames, as they are."""
    parser = FrameParser(outbox.max_frame)
    parser.receive(b"".join(outbox.take()))
    found = []
    while (frame := parser.next_frame()) is not None:
        found.append(decode(frame))
    return found


def one_by_one(messages: list[Any]) -> list[Any]:
    return [each for message in messages for each in getattr(message, "members", (message,))]


anything = st.one_of(
    st.builds(
        step,
        st.integers(0, 5),
        st.sampled_from([0, 40, 60, MEMBER_BYTES]),
        st.integers(1, 2),
        st.sampled_from([0, 1, MAX_CHAIN]),
    ),
    st.builds(
        lambda n, tokens: Result(session(n), 3, 5, tokens, bytes(40 * tokens)),
        st.integers(0, 5),
        st.integers(0, 2),
    ),
    st.builds(lambda n: Close(session(n)), st.integers(0, 5)),
    st.just(Ping(1)),
)


@given(
    st.lists(anything, max_size=20),
    st.sampled_from([0, 1, 2, 5, MAX_MEMBERS, 9999]),
    st.sampled_from([200_000, DEFAULT_MAX_FRAME]),
)
def test_everything_is_said_in_its_order(messages: list[Message], members: int, max_frame: int) -> None:
    outbox = Outbox(max_frame, members)
    for message in messages:
        outbox.add(message)
    assert bool(outbox) is bool(messages)
    frames = said(outbox)
    assert not outbox
    assert one_by_one(frames) == messages
    assert all(len(getattr(frame, "members", ())) <= members for frame in frames)
    assert all(len(frame.members) > 1 for frame in frames if isinstance(frame, Steps | Results))


def test_the_rows_of_many_sessions_go_in_one_frame() -> None:
    outbox = Outbox(DEFAULT_MAX_FRAME, MAX_MEMBERS)
    for number in range(100):
        outbox.add(step(number, hops=1))
    assert [len(frame.members) for frame in said(outbox)] == [64, 36]


def test_a_peer_that_knows_no_groups_gets_none() -> None:
    outbox = Outbox(DEFAULT_MAX_FRAME)
    for number in range(3):
        outbox.add(step(number))
    assert [type(message) for message in said(outbox)] == [Step] * 3


@pytest.mark.parametrize(
    ("between", "frames"),
    [
        (Ping(1), 3),
        (step(1, size=44), 3),  # another codec
        (step(0), 2),  # a session that is there already
        (step(7, size=MEMBER_BYTES + 1), 3),
        (Result(session(7), 3, 5, 1, bytes(40)), 3),
    ],
)
def test_what_does_not_go_into_the_group_ends_it(between: Message, frames: int) -> None:
    outbox = Outbox(DEFAULT_MAX_FRAME, MAX_MEMBERS)
    for message in (step(0), between, step(2)):
        outbox.add(message)
    assert len(said(outbox)) == frames


def test_a_group_stays_small() -> None:
    outbox = Outbox(DEFAULT_MAX_FRAME, MAX_MEMBERS)
    for number in range(64):
        outbox.add(step(number, size=MEMBER_BYTES // 2))
    for frame in said(outbox):
        assert sum(len(each.payload) for each in frame.members) <= GROUP_BYTES


def test_headers_of_long_chains_fit_into_a_frame() -> None:
    outbox = Outbox(DEFAULT_MAX_FRAME, MAX_MEMBERS)
    for number in range(64):
        outbox.add(step(number, hops=MAX_CHAIN))
    assert len(one_by_one(said(outbox))) == 64


def test_headers_of_branches_are_counted() -> None:
    most_frame = 8192
    outbox = Outbox(most_frame, MAX_MEMBERS)
    for number in range(64):
        branches = ((8, 24), *((7, 24),) * (MAX_BRANCHES - 1))
        tokens = 8 + 24 * MAX_BRANCHES
        numbers = {"step": 2**53 - 1 - number, "position": 2**31 - 1 - number, "tokens": tokens}
        told = {"want": Want.ALL, "deadline_ms": 3_600_000 - number, "hold": bool(number % 2)}
        more = {"void": 2**52 - number, "guess": tokens - number % 2, "branches": branches[number % 2 :]}
        if number % 2:
            more |= {"tokens": tokens - 24, "guess": tokens - 24}
        outbox.add(Step(session(number), **(numbers | told | more)))
    frames = outbox.take()
    assert max(map(len, frames)) <= most_frame
    assert len(frames) > 1


def test_what_cannot_be_sent_is_said_by_add_or_take() -> None:
    outbox = Outbox(DEFAULT_MAX_FRAME, MAX_MEMBERS)
    with pytest.raises(LocalProtocolError):
        outbox.add(Ping(-1))
    outbox.add(step(1))
    outbox.add(Step(session(2), -3, 5, 1, Want.LAST, payload=bytes(40)))
    with pytest.raises(LocalProtocolError, match="step is -3"):
        outbox.take()
    assert outbox.take() == []
