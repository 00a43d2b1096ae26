"""Two sessions that talk to each other, and one that a stranger talks to: without sockets."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.swarm.errors import LocalProtocolError, RemoteProtocolError
from swarm_node.swarm.transport.protocols.yamux import (
    INITIAL_WINDOW,
    MAX_ANSWERS,
    MAX_INBOUND,
    MAX_WINDOW,
    Data,
    Ended,
    Event,
    GoneAway,
    Incoming,
    Pong,
    YamuxSession,
)

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


def frame(kind: int, flags: int, stream: int, length: int, payload: bytes = b"", version: int = 0) -> bytes:
    return struct.pack("!BBHII", version, kind, flags, stream, length) + payload


def output(session: YamuxSession) -> bytes:
    pieces = []
    while piece := session.next_output():
        pieces.append(piece)
    return b"".join(pieces)


def exchange(a: YamuxSession, b: YamuxSession) -> tuple[list[Event], list[Event]]:
    """Pass everything to and fro; what a and b have heard."""
    heard: tuple[list[Event], list[Event]] = ([], [])
    while True:
        to_b, to_a = output(a), output(b)
        if not to_a + to_b:
            return heard
        heard[1].extend(b.receive(to_b))
        heard[0].extend(a.receive(to_a))


def data(events: list[Event], stream: int) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Data) and event.stream == stream)


def pair() -> tuple[YamuxSession, YamuxSession]:
    return YamuxSession(initiator=True), YamuxSession(initiator=False)


def test_the_first_frames_are_those_of_the_specification() -> None:
    dialler = YamuxSession(initiator=True)
    assert dialler.open() == 1
    dialler.write(1, [b"he", b"llo"])
    dialler.finish(1)
    assert output(dialler) == frame(WINDOW_UPDATE, SYN, 1, 0) + frame(DATA, FIN, 1, 5, b"hello")
    listener = YamuxSession(initiator=False)
    assert listener.open() == 2
    assert listener.receive(frame(DATA, SYN, 1, 2, b"hi")) == [Incoming(1), Data(1, b"hi")]
    assert output(listener) == frame(WINDOW_UPDATE, SYN, 2, 0) + frame(WINDOW_UPDATE, ACK, 1, 0)


def test_streams_end_on_both_sides_and_are_forgotten() -> None:
    a, b = pair()
    one, two = a.open(), a.open()
    a.write(one, [b"request"])
    a.finish(one)
    _, heard = exchange(a, b)
    assert heard == [Incoming(one), Incoming(two), Data(one, b"request"), Ended(one, reset=False)]
    assert a.knows(one)  # the other side has not ended it
    b.finish(one)
    b.reset(two)
    heard, _ = exchange(a, b)
    assert heard == [Ended(two, reset=True), Ended(one, reset=False)]
    assert not any(session.knows(stream) for session in (a, b) for stream in (one, two))


def test_pings_and_farewells() -> None:
    a, b = pair()
    value = a.ping()
    heard, _ = exchange(a, b)
    assert heard == [Pong(value)]
    b.go_away()
    assert exchange(a, b)[0] == [GoneAway(0)]
    with pytest.raises(LocalProtocolError, match="no new streams"):
        a.open()


def test_a_sender_stops_at_the_window_and_goes_on_as_it_is_read() -> None:
    a, b = pair()
    stream = a.open()
    sent = bytes(range(256)) * 8192  # 2 MiB
    a.write(stream, [sent])
    arrived = b""
    rounds = 0
    while a.queued(stream):
        _, heard = exchange(a, b)
        piece = data(heard, stream)
        assert 0 < len(piece) <= MAX_WINDOW
        arrived += piece
        assert not output(a)  # nothing more before it is read
        b.release(stream, len(piece))
        rounds += 1
    assert arrived == sent
    assert rounds < len(sent) // INITIAL_WINDOW  # windows grow for a stream that is read


def test_streams_take_turns() -> None:
    a, b = pair()
    big, small = a.open(), a.open()
    a.write(big, [bytes(200_000)])
    a.write(small, [b"urgent"])
    heard = b.receive(a.next_output()) + b.receive(a.next_output())
    assert data(heard, small) == b"urgent"
    assert len(data(heard, big)) < 140_000


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 70_000)), max_size=12),
    st.lists(st.integers(5, 5000), min_size=1, max_size=8),
)
def test_bytes_arrive_in_order_however_they_are_cut(writes: list[tuple[int, int]], cuts: list[int]) -> None:
    a, b = pair()
    streams = [a.open() for _ in range(3)]
    expected = dict.fromkeys(streams, b"")
    for index, size in writes:
        piece = bytes((index + size + i) % 251 for i in range(min(size, 64))) * (size // 64)
        a.write(streams[index], [piece])
        expected[streams[index]] += piece
    arrived = dict.fromkeys(streams, b"")
    for stream in streams:
        a.finish(stream)
    turn = 0
    while wire := output(a):
        while wire:
            size = cuts[turn % len(cuts)]
            turn += 1
            for event in b.receive(wire[:size]):
                if isinstance(event, Data):
                    arrived[event.stream] += event.data
                    b.release(event.stream, len(event.data))
            wire = wire[size:]
        a.receive(output(b))
    assert arrived == expected


# What a stranger may send.


def listener() -> YamuxSession:
    session = YamuxSession(initiator=False)
    session.receive(frame(WINDOW_UPDATE, SYN, 1, 0))
    return session


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(frame(DATA, 0, 1, INITIAL_WINDOW + 1), id="more than the window"),
        pytest.param(frame(DATA, 0, 7, MAX_WINDOW + 1), id="a flood on no stream"),
        pytest.param(frame(DATA, FIN, 1, 0) + frame(DATA, 0, 1, 1, b"x"), id="data after the end"),
        pytest.param(frame(WINDOW_UPDATE, SYN, 1, 0), id="opened twice"),
        pytest.param(frame(WINDOW_UPDATE, SYN, 2, 0), id="an id of ours"),
        pytest.param(frame(DATA, 0, 0, 0), id="data of no stream"),
        pytest.param(frame(WINDOW_UPDATE, 0, 1, 2**32 - 1), id="endless window"),
        pytest.param(frame(4, 0, 1, 0), id="unknown type"),
        pytest.param(frame(DATA, 0, 1, 0, version=1), id="unknown version"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
        pytest.param(frame(PING, SYN, 0, 7) * (MAX_ANSWERS + 1), id="more pings than are answered"),
    ],
)
def test_hostile_frames_end_the_connection(hostile: bytes) -> None:
    session = listener()
    with pytest.raises(RemoteProtocolError, match="yamux"):
        session.receive(hostile)


def test_a_window_is_counted_over_all_frames() -> None:
    session = listener()
    session.receive(frame(DATA, 0, 1, INITIAL_WINDOW, bytes(INITIAL_WINDOW)))
    with pytest.raises(RemoteProtocolError, match="where 0 may come"):
        session.receive(frame(DATA, 0, 1, 1, b"x"))


def test_too_many_streams_are_reset_one_by_one_and_make_room_again() -> None:
    session = YamuxSession(initiator=False)
    opened = session.receive(
        b"".join(frame(WINDOW_UPDATE, SYN, 2 * i + 1, 0) for i in range(MAX_INBOUND + 5))
    )
    assert len(opened) == MAX_INBOUND
    assert output(session).count(frame(WINDOW_UPDATE, RST, 0, 0)[1:4]) == 5
    session.receive(frame(WINDOW_UPDATE, RST, 1, 0))
    assert session.receive(frame(WINDOW_UPDATE, SYN, 9001, 0)) == [Incoming(9001)]


def test_who_goes_on_sending_to_no_stream_is_cut_off_after_what_it_was_granted() -> None:
    session = YamuxSession(initiator=False, max_inbound=1)
    session.receive(frame(DATA, SYN, 1, 6, b"unread") + frame(DATA, SYN, 3, 0))  # the second is refused
    session.reset(1)
    owed = 2 * INITIAL_WINDOW - 6
    while owed:
        size = min(owed, 60_000)
        assert session.receive(frame(DATA, 0, 3, size, bytes(size))) == []
        owed -= size
    with pytest.raises(RemoteProtocolError, match="unknown stream 3"):
        session.receive(frame(DATA, 0, 3, 1, b"x"))


def test_what_is_sent_to_a_stream_that_was_ended_here_is_dropped_within_its_window() -> None:
    session = listener()
    session.finish(1)
    assert session.receive(frame(DATA, 0, 1, 1000, bytes(1000))) == []
    with pytest.raises(RemoteProtocolError):
        session.receive(frame(DATA, 0, 1, INITIAL_WINDOW))
    session = listener()
    session.reset(1)
    assert session.receive(frame(DATA, 0, 1, 1000, bytes(1000)) + frame(WINDOW_UPDATE, 0, 1, 9)) == []


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_events_or_one_error(noise: bytes, framed: bool) -> None:
    session = listener()
    if framed:  # a plausible header in front gets further in
        noise = (
            frame(noise[0] % 4 if noise else 0, (noise[1] if len(noise) > 1 else 0) % 16, 1, len(noise))
            + noise
        )
    try:
        session.receive(noise)
        output(session)
    except RemoteProtocolError:
        pass


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 15), st.integers(0, 5), st.integers(0, 3000))))
def test_any_frames_leave_bounded_state(frames: list[tuple[int, int, int, int]]) -> None:
    session = listener()
    kept = 0
    try:
        for kind, flags, stream, length in frames:
            payload = bytes(length) if kind == DATA else b""
            for event in session.receive(frame(kind, flags, stream, length, payload)):
                kept += len(event.data) if isinstance(event, Data) else 0
            output(session)
    except RemoteProtocolError:
        pass
    assert kept <= INITIAL_WINDOW * (1 + len(frames))
