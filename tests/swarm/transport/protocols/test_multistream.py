"""Agreeing on a protocol, with whatever the other side says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.errors import RemoteProtocolError, StreamClosedError
from swarm_node.swarm.transport.protocols.multistream import (
    MAX_LINE,
    MAX_PROPOSALS,
    MULTISTREAM,
    answer,
    propose,
)


class Script:
    """A channel on which the other side has said all it will say."""

    def __init__(self, says: bytes) -> None:
        self.says = says
        self.heard = b""

    def write(self, data: bytes) -> None:
        self.heard += data

    async def read_exactly(self, size: int) -> bytes:
        if len(self.says) < size:
            raise StreamClosedError("it is over")
        data, self.says = self.says[:size], self.says[size:]
        return data


def line(text: str) -> bytes:
    data = text.encode() + b"\n"
    size = len(data)
    return (bytes([size]) if size < 128 else bytes([size % 128 + 128, size // 128])) + data


HELLO = line(MULTISTREAM)


async def test_the_bytes_are_those_of_the_specification() -> None:
    channel = Script(HELLO + line("/noise"))
    assert await propose(channel, "/noise")
    assert channel.heard == b"\x13/multistream/1.0.0\n\x07/noise\n"
    assert not await propose(Script(HELLO + line("na")), "/noise")


async def test_the_first_common_protocol_is_taken() -> None:
    long = "/" + "x" * 300
    channel = Script(HELLO + line("/tls/1.0.0") + line("ls") + line(long))
    assert await answer(channel, {long}.__contains__) == long
    assert channel.heard == HELLO + line("na") + line("na") + line(long)


@pytest.mark.parametrize(
    "says",
    [
        line("/multistream/2.0.0"),
        b"\x00",
        b"\xff\x7f" + b"x" * 20000,
        b"\x13/multistream/1.0.0x",
        HELLO + line("/not/ours") * (MAX_PROPOSALS + 1),
    ],
    ids=["other version", "empty line", f"over {MAX_LINE} bytes", "no end of line", "proposals without end"],
)
async def test_who_breaks_the_rules_is_told_from_who_left(says: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        await answer(Script(says), {"/ours"}.__contains__)


async def test_an_answer_that_was_not_asked_for() -> None:
    with pytest.raises(RemoteProtocolError, match="was not proposed"):
        await propose(Script(HELLO + line("/plaintext/2.0.0")), "/noise")


@given(st.binary(max_size=200), st.booleans())
async def test_any_bytes_end_in_an_error_or_a_protocol(says: bytes, greeted: bool) -> None:
    for negotiate in (
        answer(Script(HELLO * greeted + says), {"/ours"}.__contains__),
        propose(Script(says), "/ours"),
    ):
        try:
            assert await negotiate in ("/ours", True, False)
        except (RemoteProtocolError, StreamClosedError):
            pass
