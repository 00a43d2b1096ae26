"""What a relay has passed on for others: its daemons count it, and tell it on a port of this machine."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress

from ..addresses import listenable

ANSWER_S = 0.5
"""Seconds for an answer. A daemon that runs needs a few milliseconds."""
MOST_BYTES = 1024 * 1024
"""Bytes of an answer that are read; a daemon's have some 50 kB."""

_AT = "/ip4/127.0.0.1/tcp/0"
_NUMBER = rb"[0-9]{1,20}(?:\.[0-9]{1,20})?(?:e\+[0-9]{1,2})?"
_PASSED_ON = re.compile(rb"^libp2p_relaysvc_data_transferred_bytes_total (%s)$" % _NUMBER, re.MULTILINE)


class RelayFigures:
    """Over all daemons of one relay, which follow each other."""

    def __init__(self) -> None:
        self._port = 0
        self._before = 0  # by daemons that have ended
        self._last = 0

    def next_port(self) -> int:
        """A free port, for the figures of a daemon that is about to start. Raises ListenError."""
        self._before, self._last = self._before + self._last, 0
        self._port = int(listenable((_AT,))[0].rpartition("/")[2])
        return self._port

    async def passed_on(self) -> int:
        """Bytes, each counted once; as last known where the daemon does not answer."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                if found := _PASSED_ON.search(await _get(self._port)):
                    self._last = max(self._last, int(float(found[1])))
        return self._before + self._last


async def _get(port: int) -> bytes:
    """Raises OSError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = b""
        while len(answer) < MOST_BYTES and (more := await reader.read(MOST_BYTES)):
            answer += more
        return answer
    finally:
        writer.close()
