"""A stream that says which path it takes, and how long the peer's first answer took."""

from __future__ import annotations

from collections.abc import Callable

from ..interface import READ_SIZE, Stream


class PathStream:
    """``inner``, at the address ``remote_maddr``; implements Stream. ``on_answer`` is told when the first
    bytes come. From then on it costs nothing: the methods are the inner stream's own."""

    def __init__(self, inner: Stream, remote_maddr: str, on_answer: Callable[[], None] | None = None) -> None:
        self.peer_id = inner.peer_id
        self.remote_maddr = remote_maddr
        self.write = inner.write
        self.drain = inner.drain
        self.close = inner.close
        self._inner = inner
        self._on_answer = on_answer
        if on_answer is None:
            self.read = inner.read  # type: ignore[method-assign]

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        data = await self._inner.read(max_bytes)
        on_answer, self._on_answer = self._on_answer, None
        if data and on_answer is not None:
            on_answer()
        self.read = self._inner.read  # type: ignore[method-assign]
        return data
