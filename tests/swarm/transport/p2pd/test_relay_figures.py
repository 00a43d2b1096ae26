"""What a relay's daemons count, asked over a socket of the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from swarm_node.swarm.transport.p2pd.relay_figures import MOST_BYTES, RelayFigures

NAME = b"libp2p_relaysvc_data_transferred_bytes_total"


@asynccontextmanager
async def daemon(figures: RelayFigures, answer: bytes) -> AsyncIterator[None]:
    """The next one, that answers so and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"GET /metrics HTTP/1.0\r\n"
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", figures.next_port())
    async with server:
        yield


async def test_bytes_of_one_daemon_after_another_add_up() -> None:
    figures = RelayFigures()
    assert await figures.passed_on() == 0
    async with daemon(figures, b"HTTP/1.0 200 OK\r\n\r\n# HELP x\n%s 1.5e+06\nother 3\n" % NAME):
        assert await figures.passed_on() == 1_500_000
    assert await figures.passed_on() == 1_500_000, "it does not answer any more"
    async with daemon(figures, b"\n%s 12\n" % NAME):
        assert await figures.passed_on() == 1_500_012


@pytest.mark.parametrize(
    "answer", [b"", b"\n%s NaN\n" % NAME, b"\n%s 1e\n" % NAME, b"x" * (2 * MOST_BYTES) + b"\n%s 1\n" % NAME]
)
async def test_an_answer_of_another_kind_counts_for_nothing(answer: bytes) -> None:
    figures = RelayFigures()
    async with daemon(figures, answer):
        assert await figures.passed_on() == 0
