from __future__ import annotations

import struct
import time

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.swarm.errors import LocalProtocolError, RemoteProtocolError
from swarm_node.swarm.protocol.wire import (
    DEFAULT_MAX_FRAME,
    FIXED_HEADER,
    MAGIC,
    MAX_HEADER,
    Frame,
    FrameParser,
    encode_frame,
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
frames = st.builds(
    Frame,
    kind=st.integers(0, 255),
    header=st.dictionaries(st.text(max_size=8), values, max_size=5),
    payload=st.binary(max_size=300),
    flags=st.integers(0, 255),
)


def wire_bytes(*sent: Frame) -> bytes:
    return b"".join(bytes(buffer) for frame in sent for buffer in encode_frame(frame))


def raw_frame(header: bytes, payload: bytes = b"", *, kind: int = 11, magic: bytes = MAGIC) -> bytes:
    return struct.pack("!2sBBHI", magic, kind, 0, len(header), len(payload)) + header + payload


def parse(data: bytes, *, max_frame: int = DEFAULT_MAX_FRAME, chunk: int = 1 << 20) -> list[Frame]:
    parser = FrameParser(max_frame)
    found = []
    for start in range(0, len(data), chunk):
        parser.receive(data[start : start + chunk])
        while (frame := parser.next_frame()) is not None:
            found.append(frame)
    parser.end()
    return found


@given(st.lists(frames, max_size=5), st.data())
def test_any_chunking_gives_the_same_frames(sent: list[Frame], data: st.DataObject) -> None:
    stream = wire_bytes(*sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    take_at_once = data.draw(st.booleans())
    parser = FrameParser()
    found: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        parser.receive(stream[start:end])
        while take_at_once and (frame := parser.next_frame()) is not None:
            found.append(frame)
    while (frame := parser.next_frame()) is not None:
        found.append(frame)
    parser.end()
    assert found == sent


@given(st.lists(frames, min_size=1, max_size=3), st.data())
def test_arbitrary_damage_gives_frames_or_one_remote_protocol_error(
    sent: list[Frame], data: st.DataObject
) -> None:
    stream = bytearray(wire_bytes(*sent))
    position = data.draw(st.integers(0, len(stream) - 1))
    stream[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    parser = FrameParser(max_frame=4096)
    first_error = None
    try:
        for byte in stream:
            parser.receive(bytes([byte]))
            while parser.next_frame() is not None:
                pass
        parser.end()
    except RemoteProtocolError as error:
        first_error = error
    if first_error is not None:
        parser.receive(wire_bytes(*sent))
        with pytest.raises(RemoteProtocolError) as again:
            parser.next_frame()
        assert again.value is first_error


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_raise_anything_else(data: bytes) -> None:
    for stream in (data, MAGIC + data, raw_frame(data)):
        try:
            parse(stream)
        except RemoteProtocolError:
            pass


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "msgpack"),
        (b"\xc1", "msgpack"),
        (msgpack.packb([1, 2]), "list, not a map"),
        (msgpack.packb(3), "int, not a map"),
        (msgpack.packb(None), "NoneType, not a map"),
        (msgpack.packb({1: 2}), "map key"),
        (msgpack.packb({b"a": 2}), "not a string"),
        (msgpack.packb({"a": {2: 2}}), "map key"),
        (msgpack.packb({"a": msgpack.ExtType(5, b"xy")}), "msgpack"),
        (b"\x81\xa1a\xc7\x00\x05", "extension"),
        (b"\x81\xa1a\xd6\xff\x00\x00\x00\x00", "msgpack"),
        (b"\x81\xa1a\xa1\xff", "msgpack"),
        (b"\x81\xa1a", "msgpack"),
        (b"\x80\x00", "msgpack"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "msgpack"),
        (b"\x81\xa1a\xdf\xff\xff\xff\xff", "msgpack"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "msgpack"),
        (b"\x81\xa1a" + b"\x91" * 60_000 + b"\x01", "msgpack"),
        (msgpack.packb({"a": [0] * 5000}), "msgpack"),
    ],
)
def test_bad_headers_are_refused(header: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        parse(raw_frame(header))


def test_not_our_protocol_is_refused_at_the_first_byte() -> None:
    parser = FrameParser()
    parser.receive(b"GET / HTTP/1.1")
    with pytest.raises(RemoteProtocolError, match="not a frame: starts with b'GET '"):
        parser.next_frame()
    parser = FrameParser()
    parser.receive(b"SX")
    with pytest.raises(RemoteProtocolError, match="not a frame"):
        parser.next_frame()


def test_a_frame_too_large_is_refused_before_its_bytes_come() -> None:
    parser = FrameParser(max_frame=1000)
    parser.receive(FIXED_HEADER.pack(MAGIC, 7, 0, 1, 990))
    with pytest.raises(RemoteProtocolError, match="frame of 1001 bytes, at most 1000"):
        parser.next_frame()
    assert parse(raw_frame(b"\x80", b"x" * 989), max_frame=1000)[0].payload == b"x" * 989


@pytest.mark.parametrize("size", [1, 9, 10, 12, 40])
def test_a_truncated_frame_is_an_error(size: int) -> None:
    stream = wire_bytes(Frame(7, {"position": 1}, b"y" * 40))
    assert len(stream) > 60
    with pytest.raises(RemoteProtocolError, match="middle of a frame"):
        parse(stream[:size])
    with pytest.raises(RemoteProtocolError, match="middle of a frame, 1 bytes of payload missing"):
        parse(stream[:-1])


def test_a_received_payload_is_writable_and_its_own() -> None:
    stream = wire_bytes(Frame(7, {}, b"abcd"), Frame(7, {}, b"efgh"))
    first, second = parse(stream)
    assert isinstance(first.payload, memoryview)
    first.payload[0] = 0
    assert second.payload == b"efgh"


def test_the_payload_is_not_copied_when_it_is_sent() -> None:
    payload = bytearray(1000)
    assert encode_frame(Frame(7, {}, payload))[1] is payload
    items = memoryview(bytearray(16)).cast("f")
    assert len(encode_frame(Frame(7, {}, items))[1]) == 16


@pytest.mark.parametrize(
    "frame",
    [
        Frame(256, {}),
        Frame(-1, {}),
        Frame(1, {}, flags=300),
        Frame(1, {"a": b"x" * MAX_HEADER}),
        Frame(1, {"a": 2**70}),
        Frame(1, {"a": object()}),
        Frame(1, {}, memoryview(bytearray(64))[::2]),
    ],
)
def test_frames_that_cannot_be_written_are_our_fault(frame: Frame) -> None:
    with pytest.raises(LocalProtocolError):
        encode_frame(frame)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 1 << 20), st.integers(64, 1 << 18))
def test_large_payloads_survive_any_chunk_size(size: int, chunk: int) -> None:
    payload = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    assert parse(wire_bytes(Frame(7, {}, payload), Frame(8, {})), chunk=chunk) == [
        Frame(7, {}, payload),
        Frame(8, {}),
    ]


def test_parsing_takes_linear_time() -> None:
    """Eight times the bytes, in chunks of 1 KiB, take about eight times as long; quadratic would be 64."""

    def seconds(mebibytes: int) -> float:
        stream = wire_bytes(Frame(7, {}, bytes(mebibytes << 20)))
        best = float("inf")
        for _ in range(5):
            start = time.process_time()
            parse(stream, chunk=1024)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(16) < 40 * seconds(2)


def test_many_small_frames_in_one_piece_take_linear_time() -> None:
    def seconds(count: int) -> float:
        stream = wire_bytes(Frame(11, {"nonce": 1})) * count
        start = time.process_time()
        assert len(parse(stream, chunk=len(stream))) == count
        return time.process_time() - start

    assert min(seconds(40_000) for _ in range(4)) < 12 * min(seconds(10_000) for _ in range(4))
