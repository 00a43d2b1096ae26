"""multistream-select: two sides agree on a protocol, by lines of text with their length in front.

    ←→  /multistream/1.0.0
     →  /noise
    ←   /noise            (or na: not spoken here; another may be proposed)

Specification: https://github.com/multiformats/multistream-select
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ...errors import RemoteProtocolError

MULTISTREAM = "/multistream/1.0.0"
MAX_LINE = 1024
"""A line may have at most this many bytes, as in go-multistream."""
MAX_PROPOSALS = 32
"""A peer may propose at most this many protocols on one stream."""

_NOT_HERE = "na"


class ByteChannel(Protocol):
    def write(self, data: bytes) -> None: ...

    async def read_exactly(self, size: int) -> bytes: ...


async def propose(channel: ByteChannel, protocol_id: str) -> bool:
    """Whether the other side speaks this protocol. Raises RemoteProtocolError, or what the channel raises."""
    channel.write(proposal(protocol_id))
    return await agreed(channel, protocol_id)


def proposal(protocol_id: str) -> bytes:
    """What ``propose`` writes. More may follow at once, for a peer that is known to speak the protocol."""
    return _line(MULTISTREAM) + _line(protocol_id)


async def agreed(channel: ByteChannel, protocol_id: str) -> bool:
    """What ``propose`` reads, and gives."""
    if (answer := await _read_line(channel)) != MULTISTREAM:
        raise RemoteProtocolError(f"{answer[:40]!r} is not an answer of multistream-select")
    answer = await _read_line(channel)
    if answer not in (protocol_id, _NOT_HERE):
        raise RemoteProtocolError(f"{answer[:40]!r} was not proposed")
    return answer == protocol_id


async def answer(channel: ByteChannel, speaks: Callable[[str], bool]) -> str:
    """The protocol that both sides speak. Raises RemoteProtocolError, or what the channel raises."""
    channel.write(_line(MULTISTREAM))
    if (line := await _read_line(channel)) != MULTISTREAM:
        raise RemoteProtocolError(f"{line[:40]!r} does not begin multistream-select")
    for _ in range(MAX_PROPOSALS):
        proposed = await _read_line(channel)
        if speaks(proposed):
            channel.write(_line(proposed))
            return proposed
        channel.write(_line(_NOT_HERE))
    raise RemoteProtocolError(f"{MAX_PROPOSALS} protocols were proposed, none of them ours")


def _line(text: str) -> bytes:
    data = text.encode() + b"\n"
    size = len(data)
    prefix = bytes([size]) if size < 0x80 else bytes([size & 0x7F | 0x80, size >> 7])
    return prefix + data


async def _read_line(channel: ByteChannel) -> str:
    size = (await channel.read_exactly(1))[0]
    if size & 0x80:
        size = size & 0x7F | (await channel.read_exactly(1))[0] << 7
    if not 0 < size <= MAX_LINE:
        raise RemoteProtocolError(f"a line of {size} bytes in multistream-select")
    data = await channel.read_exactly(size)
    if not data.endswith(b"\n"):
        raise RemoteProtocolError("a line of multistream-select that does not end")
    return data[:-1].decode("ascii", "replace")
