"""REPLAY: a session's journal in chunks, for another next hop or for the client.

Two chunks are under way at a time, so that the other side computes without a pause and its other sessions'
decode steps still get their turn. Rows that this hop has not computed yet go as soon as they are: replays
through several new hops run at the same time, as a pipeline.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from time import perf_counter

from ...swarm.errors import ErrorCode, PeerError, SwarmError
from ...swarm.protocol.field_types import Progress
from ...swarm.protocol.messages import Replay, Replayed
from ...swarm.protocol.step_watch import StepWatch, Verdict
from ...swarm.timeouts import work_within_s
from .journal import Journal

CHUNK_TOKENS = 256
CHUNKS_UNDER_WAY = 2
STANDSTILL_S = 120.0
"""No queue lets a next hop stand still for longer: its client waits, and has other ways."""

SendRows = Callable[[int, int, int, bytes], Awaitable[None]]
"""``await send_rows(step, position, tokens, rows)`` sends one chunk. Raises SwarmError."""


class Replayer:
    """One REPLAY of one session: ``check_journal``, ``send_all``, ``all_computed``, ``replayed``, in this
    order. ``used`` is called with every chunk."""

    def __init__(
        self, request: Replay, journal: Journal | None, send_rows: SendRows, used: Callable[[], None]
    ) -> None:
        self._request = request
        self._journal = journal
        self._send_rows = send_rows
        self._used = used
        self._until = request.until
        self._cursor = request.from_position
        self._steps = 0
        self._bytes = 0
        self._under_way: deque[tuple[int, float]] = deque()  # step, when sent
        self._failure: SwarmError | None = None
        self._changed = asyncio.Event()
        self._watch = StepWatch(1, self._work_within_s, self._work_within_s)
        self._queue_s = 0.0

    def check_journal(self) -> None:
        """Raises PeerError with code JOURNAL_LOST if rows that are asked for are not here."""
        if self._request.from_position < self._request.until:
            self._rows()

    async def send_all(self, most_tokens: int) -> None:
        """Send every row that is asked for, in steps of ``most_tokens`` at most.

        Raises PeerError with code JOURNAL_LOST, or what the next hop was lost of.
        """
        request, chunk = self._request, min(CHUNK_TOKENS, most_tokens)
        while self._cursor < self._until:
            if self._failure is not None:
                raise self._failure
            journal = self._rows()
            tokens = min(journal.end, self._until, self._cursor + chunk) - self._cursor
            if tokens <= 0 or len(self._under_way) >= CHUNKS_UNDER_WAY:
                await self._change()
                continue
            rows = journal.slice(self._cursor, self._cursor + tokens)
            if rows is None:
                continue
            step, position = request.step + self._steps, self._cursor
            self._steps += 1
            self._cursor += tokens
            self._bytes += len(rows)
            self._used()
            if request.to is not None:
                self._under_way.append((step, perf_counter()))
            await self._send_rows(step, position, tokens, rows)

    async def all_computed(self) -> None:
        """Wait until the next hop has computed all chunks. Raises what it was lost of."""
        while self._under_way and self._failure is None:
            await self._change()
        if self._failure is not None:
            raise self._failure

    def replayed(self, took_us: int, link_us: int, way: str) -> Replayed:
        tokens = self._cursor - self._request.from_position
        return Replayed(self._request.session, tokens, self._bytes, took_us, link_us, way)

    def _rows(self) -> Journal:
        """The journal, as long as it holds what is asked for."""
        request, journal = self._request, self._journal
        if journal is not None and journal.holds(request.from_position):
            return journal
        if journal is None:
            text = "this session has no journal"
        elif journal.lost:
            text = "this session's journal was dropped to keep to the node's --journal-mib"
        else:
            text = f"this session's journal begins at position {journal.base}"
        raise PeerError(
            f"{text}; rows from {request.from_position} on are asked for",
            code=ErrorCode.JOURNAL_LOST,
            retriable=False,
            hint="Start the replay one hop earlier.",
        )

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    # What others tell it. None of these waits.

    @property
    def work(self) -> int:
        """Grows with every chunk that is sent, and with every one that is answered."""
        return 2 * self._steps - len(self._under_way)

    @property
    def waiting_since(self) -> float | None:
        return self._under_way[0][1] if self._under_way else None

    @property
    def oldest(self) -> int | None:
        """The step of the oldest chunk without an answer."""
        return self._under_way[0][0] if self._under_way else None

    def judge(self, told: Progress | None, chunk: int, queue_s: float) -> Verdict | None:
        """The next hop tells so of its session, while it has not answered ``chunk``."""
        self._queue_s = queue_s
        return self._watch.heard(0, told, chunk, perf_counter(), tokens=CHUNK_TOKENS)

    def _work_within_s(self, _: int) -> float:
        return work_within_s(0.0, self._queue_s, cold=True, most_s=STANDSTILL_S)

    def grown(self) -> None:
        """The journal has got more rows, or is lost."""
        self._changed.set()

    def overtaken_at(self, position: int) -> None:
        """The client goes on from ``position``, with a step that follows the replay: rows from there on are
        not wanted any more."""
        self._until = min(self._until, position)
        self._changed.set()

    def computed(self, step: int) -> None:
        """The next hop has computed a chunk, in the order in which they were sent."""
        if self._under_way and self._under_way[0][0] == step:
            self._under_way.popleft()
            self._changed.set()

    def fail(self, error: SwarmError) -> None:
        self._failure = error
        self._changed.set()
