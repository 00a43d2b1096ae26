"""One prompt with several answers: it is fed once, and each answer's session is a fork of the first one's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from .swarm_session import SwarmSession


class SharedPrompt:
    """``read`` gives its token ids. The answers may begin at any time, and in any order."""

    def __init__(self, read: Callable[[], Awaitable[Sequence[int]]]) -> None:
        self._read = read
        self._ids: Sequence[int] | None = None
        self._hidden: np.ndarray | None = None  # (1, hidden), of the prompt's last token
        self._sessions: list[SwarmSession] = []  # which begin with the prompt
        self._behind: set[SwarmSession] = set()  # which wait for their turn
        self._turn = asyncio.Lock()

    async def ids(self) -> Sequence[int]:
        """Its token ids, read once. Raises what ``read`` raises."""
        if self._ids is None:
            async with self._turn:
                if self._ids is None:
                    self._ids = await self._read()
        return self._ids

    async def feed(self, session: SwarmSession) -> np.ndarray:
        """Let a fresh ``session`` hold the prompt; the hidden state (1, hidden) of its last token.

        The first that comes feeds it; if it fails or is cancelled, the next does. What it waits for, all wait
        for, and are told. Raises as ``append``.
        """
        ids = await self.ids()
        self._behind.add(session)
        try:
            await self._turn.acquire()
        finally:
            self._behind.remove(session)
        try:
            if self._hidden is None:
                session.lead(self._behind)
                self._hidden = await session.append(ids)
                self._sessions.append(session)
                return self._hidden
        finally:
            self._turn.release()
        self._sessions = [each for each in self._sessions if each.is_open] or self._sessions[-1:]
        await session.branch(self._sessions[0], len(ids))
        self._sessions.append(session)
        return self._hidden
