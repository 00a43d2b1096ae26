"""What is said on a stream in one turn of the event loop: it leaves in one write, and the rows of many
sessions in one frame."""

from __future__ import annotations

from collections.abc import Sequence

from ..protocol.field_types import MAX_MEMBERS
from ..protocol.messages import Message, Result, Results, Step, Steps, encode
from ..protocol.wire import FIXED_HEADER, Payload, encode_frame

MEMBER_BYTES = 64 * 1024
"""Longer payloads than this go alone: a frame is not shown to its receiver before its last byte."""
GROUP_BYTES = 256 * 1024
"""Payload of a group at most, for the same reason."""
MEMBER_HEADER_BYTES = 160
HOP_HEADER_BYTES = 40
BRANCH_HEADER_BYTES = 5
"""Bytes of a frame's header that a member needs at most: by itself, for each hop that it has passed, and for
each of its branches."""
GROUP_HEADER_BYTES = 60_000

_Member = Step | Result


class Outbox:
    """Messages in the order they are said. ``members``: as many of several sessions the peer takes in one
    frame; ``max_frame``: bytes of a frame that it takes."""

    def __init__(self, max_frame: int, members: int = 0) -> None:
        self.max_frame = max_frame
        self.members = members
        self._frames: list[Payload] = []
        self._group: list[_Member] = []
        self._sessions: set[bytes] = set()
        self._row_bytes = 0  # of the group's members
        self._payload_bytes = self._header_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._frames or self._group)

    def add(self, message: Message) -> None:
        """Say it with the others. Raises LocalProtocolError for what cannot be sent, then or by ``take``."""
        if self.members > 1 and isinstance(message, Step | Result):
            size, rows = len(message.payload), message.tokens
            if rows and size <= MEMBER_BYTES and not size % rows:
                self._join(message, size, size // rows)
                return
        self._close()
        self._frames += encode_frame(encode(message))

    def take(self) -> list[Payload]:
        """What is to be written now; the outbox is empty then."""
        self._close()
        frames, self._frames = self._frames, []
        return frames

    def _join(self, message: _Member, size: int, row_bytes: int) -> None:
        group = self._group
        branches = len(message.branches) if isinstance(message, Step) else 0
        header = MEMBER_HEADER_BYTES + HOP_HEADER_BYTES * len(message.spent) + BRANCH_HEADER_BYTES * branches
        payload_bytes, header_bytes = self._payload_bytes + size, self._header_bytes + header
        if group and (
            type(group[0]) is not type(message)
            or row_bytes != self._row_bytes
            or message.session in self._sessions
            or len(group) >= min(self.members, MAX_MEMBERS)
            or payload_bytes > GROUP_BYTES
            or header_bytes > GROUP_HEADER_BYTES
            or FIXED_HEADER.size + payload_bytes + header_bytes > self.max_frame
        ):
            self._close()
            payload_bytes, header_bytes = size, header
        self._group.append(message)
        self._sessions.add(message.session)
        self._row_bytes = row_bytes
        self._payload_bytes, self._header_bytes = payload_bytes, header_bytes

    def _close(self) -> None:
        """No more goes into the group."""
        group = self._group
        if not group:
            return
        self._group = []
        self._sessions.clear()
        self._payload_bytes = self._header_bytes = 0
        self._frames += encode_frame(encode(group[0] if len(group) == 1 else _together(group)))


def _together(group: Sequence[_Member]) -> Message:
    steps = tuple(each for each in group if isinstance(each, Step))
    return Steps(steps) if steps else Results(tuple(each for each in group if isinstance(each, Result)))
