"""Frames: how messages are cut out of a byte stream, without doing any I/O.

    offset  size  field
    0       2     magic, b"SW"
    2       1     kind of message
    3       1     flags
    4       2     length H of the header, big-endian
    6       4     length P of the payload, big-endian
    10      H     header: one msgpack map with string keys
    10+H    P     payload: raw tensor bytes, never copied through msgpack

Whatever bytes a peer sends, ``FrameParser`` yields frames or raises RemoteProtocolError, in time linear in
the bytes and in memory bounded by ``max_frame`` plus what one ``receive`` was given.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NoReturn

import msgpack

from ..errors import LocalProtocolError, RemoteProtocolError

PROTOCOL_ID = "/swarm-node/1"
"""The libp2p protocol that carries these frames."""

MAGIC = b"SW"
FIXED_HEADER = struct.Struct("!2sBBHI")
MAX_HEADER = 0xFFFF
"""Bytes of msgpack header that a frame can hold."""
MAX_PAYLOAD = 0xFFFFFFFF
DEFAULT_MAX_FRAME = 16 * 1024 * 1024 + FIXED_HEADER.size + MAX_HEADER
"""Bytes of a whole frame that we accept: a payload of 16 MiB and the largest header."""
MAX_HEADER_ITEMS = 4096
"""Elements in one array or map of a header."""

Payload = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. The payload of a received frame is a writable memoryview of memory that is its own."""

    kind: int
    header: dict[str, object]
    payload: Payload = b""
    flags: int = 0


def encode_frame(frame: Frame) -> list[Payload]:
    """The buffers to write, in order. The payload is passed on as it is, not copied.

    Raises LocalProtocolError for a frame that cannot be written: a bug of ours.
    """
    try:
        header = msgpack.packb(frame.header)
    except (ValueError, TypeError, OverflowError) as error:
        raise LocalProtocolError(f"frame of kind {frame.kind}: cannot pack the header: {error}") from error
    payload = frame.payload
    if isinstance(payload, memoryview) and not (payload.format == "B" and payload.c_contiguous):
        try:
            payload = payload.cast("B")  # transports count bytes, not items
        except TypeError as error:
            raise LocalProtocolError(f"frame of kind {frame.kind}: payload is not contiguous") from error
    size = len(payload)
    if len(header) > MAX_HEADER:
        raise LocalProtocolError(
            f"frame of kind {frame.kind}: header of {len(header)} bytes, at most {MAX_HEADER}"
        )
    if size > MAX_PAYLOAD:
        raise LocalProtocolError(
            f"frame of kind {frame.kind}: payload of {size} bytes, at most {MAX_PAYLOAD}"
        )
    try:
        fixed = FIXED_HEADER.pack(MAGIC, frame.kind, frame.flags, len(header), size)
    except struct.error as error:
        raise LocalProtocolError(f"frame of kind {frame.kind}, flags {frame.flags}: {error}") from error
    return [fixed + header, payload] if size else [fixed + header]


class FrameParser:
    """Bytes in, frames out: ``receive`` each piece as it comes, then take ``next_frame`` until it is None.

    After the first RemoteProtocolError the parser is finished and raises that error again for ever:
    where the next frame would begin is unknown.
    """

    def __init__(self, max_frame: int = DEFAULT_MAX_FRAME) -> None:
        if max_frame < FIXED_HEADER.size:
            raise LocalProtocolError(f"max_frame of {max_frame} bytes cannot hold a frame")
        self.max_frame = max_frame  # may be changed between frames
        self._buffer = bytearray()  # bytes before, and after, the payload that is being filled
        self._pending: tuple[int, int, dict[str, object]] | None = None  # kind, flags, header
        self._head = 0  # bytes before the payload of the pending frame
        self._payload = bytearray()  # of the pending frame
        self._missing = 0  # bytes that the payload still lacks
        self._error: RemoteProtocolError | None = None

    @property
    def held(self) -> int:
        """Bytes that came and are not given out yet."""
        return self._head + len(self._buffer) + len(self._payload)

    def receive(self, data: Payload) -> None:
        """Take the next bytes of the stream."""
        if self._error is not None:
            return
        if self._missing:
            # A big payload goes to its own memory at once, so that no byte is moved twice.
            if len(data) <= self._missing:
                self._payload += data
                self._missing -= len(data)
                return
            view = memoryview(data)
            self._payload += view[: self._missing]
            self._buffer += view[self._missing :]
            self._missing = 0
        else:
            self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None until more bytes come."""
        if self._error is not None:
            raise self._error
        if self._pending is None and not self._start_frame():
            return None
        if self._missing or self._pending is None:
            return None
        kind, flags, header = self._pending
        payload: Payload = memoryview(self._payload) if self._payload else b""
        self._pending = None
        self._head = 0
        self._payload = bytearray()
        return Frame(kind, header, payload, flags)

    def unread(self) -> bytes:
        """Take back what follows the last frame that was taken: of another protocol on the same stream."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        return rest

    def discard(self) -> None:
        """Drop what came at once, and not when the garbage of a closed stream is collected."""
        self._buffer, self._payload = bytearray(), bytearray()
        self._pending = None
        self._head = self._missing = 0

    def end(self) -> None:
        """The stream has ended. Raises RemoteProtocolError if that cuts a frame short."""
        if self._error is not None:
            raise self._error
        if self._pending is not None or self._buffer:
            missing = f", {self._missing} bytes of payload missing" if self._missing else ""
            self._fail(f"the stream ended in the middle of a frame{missing}")

    def _start_frame(self) -> bool:
        """Read one frame's header and what is there of its payload; False if the header is incomplete."""
        buffer = self._buffer
        if len(buffer) < FIXED_HEADER.size:
            if not MAGIC.startswith(buffer[:2]):
                self._fail_magic()
            return False
        magic, kind, flags, header_size, payload_size = FIXED_HEADER.unpack_from(buffer)
        if magic != MAGIC:
            self._fail_magic()
        body = FIXED_HEADER.size + header_size
        if body + payload_size > self.max_frame:
            self._fail(f"frame of {body + payload_size} bytes, at most {self.max_frame} are accepted")
        if len(buffer) < body:
            return False
        header = self._unpack_header(buffer[FIXED_HEADER.size : body])
        self._payload = buffer[body : body + payload_size]
        self._missing = payload_size - len(self._payload)
        self._pending = (kind, flags, header)
        self._head = body
        del buffer[: body + len(self._payload)]
        return True

    def _unpack_header(self, data: bytearray) -> dict[str, object]:
        try:
            header = msgpack.unpackb(
                data,
                ext_hook=refuse_extension,
                max_ext_len=0,
                max_array_len=MAX_HEADER_ITEMS,
                max_map_len=MAX_HEADER_ITEMS,
            )
        except ValueError as error:  # msgpack's own errors and UnicodeDecodeError are ValueErrors
            self._fail(f"frame header is not valid msgpack: {str(error)[:100] or type(error).__name__}")
        if type(header) is not dict:
            self._fail(f"frame header is {type(header).__name__}, not a map")
        for key in header:
            if type(key) is not str:  # msgpack lets bytes through as well
                self._fail(f"frame header has a key that is {type(key).__name__}, not a string")
        return header

    def _fail_magic(self) -> NoReturn:
        self._fail(f"not a frame: starts with {bytes(self._buffer[:4])!r}, not {MAGIC!r}")

    def _fail(self, message: str) -> NoReturn:
        self._error = RemoteProtocolError(message)
        self._buffer = bytearray()
        self._payload = bytearray()
        self._missing = 0
        raise self._error


def refuse_extension(code: int, data: bytes) -> NoReturn:
    """For msgpack's ``ext_hook``."""
    raise ValueError(f"extension type {code} is not allowed")
