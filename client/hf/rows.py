"""The rows of a batch: each is a session of its own in the swarm, whose hops batch them again.

A batch is a rectangle of token ids; columns that an attention mask leaves out (padding) are not part of a
row's sequence and are never sent anywhere. Rows that begin alike are fed once and forked. What no hop holds
any more is fed again from the token ids, which are kept here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...swarm.errors import BusyError, RouteError, UsageError
from ...swarm.protocol.messages import Want
from ...swarm.runtime.tasks import all_of
from ..async_model import AsyncSwarmModel
from ..hops.trace import Repair
from ..session.swarm_session import SwarmSession

MOST_FED_AGAIN = 16
"""At most this many tokens are fed again where a fork would do."""
SPARE_TOKENS = 256
"""Tokens of KV cache reserved beyond what is fed, if it is not known how long a sequence is going to be."""
PREFILL_TOKENS = 64
"""From this number on, tokens whose results are not wanted get a step of their own, which returns none."""


@dataclass(eq=False, slots=True)
class Row:
    """One sequence. ``ids``: its tokens. ``held[c]``: how many of them the first c columns have.

    ``session``: None where no hop holds any of it. ``feeding``: a step is under way, or failed. ``repaired``:
    repairs of the sessions of the batch that are closed.
    """

    repaired: list[Repair]

    ids: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=lambda: [0])
    session: SwarmSession | None = None
    max_tokens: int = 0
    feeding: bool = False

    def cut(self, columns: int) -> None:
        """Go back to the first ``columns`` columns."""
        del self.held[columns + 1 :]
        del self.ids[self.held[-1] :]
        if self.session is None:
            return
        if self.feeding:
            self.drop()
        elif len(self.ids) < self.session.length:
            self.session.rollback(len(self.ids))

    def drop(self, keep: bool = False) -> None:
        """Free the hops. ``keep``: they may keep its pages for a sequence that begins the same way."""
        session, self.session, self.feeding = self.session, None, False
        if session is not None:
            session.close(keep)
            self.repaired.extend(session.repaired)

    async def fork(self) -> Row:
        session = await self.session.fork() if self.session is not None else None
        return Row(self.repaired, list(self.ids), list(self.held), session, self.max_tokens)


class RowBatch:
    """A batch. Coroutines and ``close`` run in the client's event loop, one at a time.

    ``limit``: most tokens a row may come to; None: what the model's context holds.
    """

    def __init__(self, core: AsyncSwarmModel, limit: int | None = None) -> None:
        self.rows: list[Row] = []
        self.limit = limit
        self._core = core
        self._reserved = limit or 0  # columns
        self._repaired: list[Repair] = []
        self._chosen: list[int] = []  # the row that each is going to be made of

    @property
    def size(self) -> int:
        """Rows."""
        return len(self._chosen)

    @property
    def repaired(self) -> list[Repair]:
        """Each time that the route of a row was repaired."""
        sessions = [row.session for row in self.rows if row.session is not None]
        return self._repaired + [repair for session in sessions for repair in session.repaired]

    @property
    def columns(self) -> int:
        return len(self.rows[0].held) - 1 if self.rows else 0

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, padding not counted."""
        return [len(self.rows[number].ids) for number in self._chosen]

    def reserve(self, columns: int) -> None:
        """Sessions opened from now on get KV cache for rows of ``columns`` columns."""
        self._reserved = max(self._reserved, columns)

    def close(self, keep: bool = True) -> None:
        for row in self.rows:
            row.drop(keep)
        self.rows.clear()
        self._chosen.clear()

    def cut(self, columns: int) -> None:
        for row in self.rows:
            row.cut(columns)

    async def feed(
        self, ids: Sequence[Sequence[int]], mask: Sequence[Sequence[int]], wanted: int
    ) -> list[np.ndarray]:
        """Append columns: ``ids`` and ``mask`` have a list for each row, 0 in the mask leaves a token out.

        Returns for each row the hidden states after the last block of what is in the last ``wanted`` columns:
        (tokens, hidden) float32. Where one row fails, all rows are as they were before. Raises UsageError for
        more tokens than there may be, and whatever ``SwarmSession.append`` raises.
        """
        before, fresh = self.columns, not self.rows
        if not fresh and self.size != len(ids):
            raise UsageError(
                f"{len(ids)} rows of token ids for a cache of {self.size}",
                hint="Give as many, or fit the cache with batch_select_indices or batch_repeat_interleave.",
            )
        tokens = [
            [token for token, kept in zip(row, bits, strict=True) if kept]
            for row, bits in zip(ids, mask, strict=True)
        ]
        wants = [sum(map(bool, bits[-wanted:])) for bits in mask]
        self._check_room(tokens)
        await self._settle()
        if fresh:
            self.rows.extend(Row(self._repaired) for _ in ids)
            self._chosen = list(range(len(ids)))
        for row, new, kept in zip(self.rows, tokens, mask, strict=True):
            for one in kept:
                row.held.append(row.held[-1] + bool(one))
            row.ids.extend(new)
        results: dict[int, np.ndarray] = {}
        leaders = _leaders(tokens, mask) if fresh else list(range(len(tokens)))

        async def feed_row(number: int) -> None:
            results[number] = await self._feed_row(self.rows[number], len(tokens[number]), wants[number])

        async def follow(number: int) -> None:
            self.rows[number] = await self.rows[leaders[number]].fork()
            results[number] = results[leaders[number]]

        try:
            await all_of(*(feed_row(number) for number, leader in enumerate(leaders) if leader == number))
            await all_of(*(follow(number) for number, leader in enumerate(leaders) if leader != number))
        except BaseException as error:
            self._undo(before)
            if isinstance(error, BusyError | RouteError) and len(tokens) > 1:
                size = max(row.max_tokens for row in self.rows) if self.rows else self._reserved
                error.hint = (
                    f"Make the batch smaller: its {len(tokens)} rows take {len(tokens)} times "
                    f"{size} tokens of KV cache on every hop. {error.hint}".strip()
                )
            if fresh:
                self.close(keep=False)
            raise
        return [results[number] for number in range(len(tokens))]

    def select(self, numbers: Sequence[int]) -> None:
        """Row i becomes what row ``numbers[i]`` was; rows named again are forked when more is fed."""
        self._chosen = [self._chosen[number] for number in numbers]

    async def _settle(self) -> None:
        """Make the rows what was chosen."""
        chosen, old = self._chosen, list(self.rows)
        if chosen == list(range(len(old))):
            return
        first = {source: place for place, source in reversed(list(enumerate(chosen)))}
        new = [old[source] for source in chosen]
        again = {place: source for place, source in enumerate(chosen) if first[source] != place}
        spares = [row for number, row in enumerate(old) if number not in first]
        cheap = _cheap_tokens([row.session for row in old if row.session is not None])
        for place, source in list(again.items()):
            if (heir := _take_over(spares, old[source], cheap)) is not None:
                new[place] = heir
                del again[place]
        for row in spares:
            row.drop()  # before others are forked: it makes room for them

        async def fork(place: int, source: int) -> None:
            new[place] = await old[source].fork()

        try:
            await all_of(*(fork(place, source) for place, source in again.items()))
        except BaseException:
            for row in (*old, *new):
                row.drop()  # fed again where it is used again
            raise
        self.rows[:] = new
        self._chosen = list(range(len(new)))

    async def align(self, ids: Sequence[Sequence[int]], mask: Sequence[Sequence[int]]) -> None:
        """Keep of what is held only what whole sequences ``ids`` begin with, their last token left out: rows
        are chosen, forked and cut so that the rest is what remains to be fed. ``mask`` as in ``feed``."""
        await self._settle()
        if not self.rows:
            return
        sources: list[int] = []
        helds: list[list[int]] = []
        columns = len(ids[0])
        for tokens, kept in zip(ids, mask, strict=True):
            real = [token for token, one in zip(tokens, kept, strict=True) if one]
            common = [_common(row.ids, real) for row in self.rows]
            best = max(range(len(common)), key=common.__getitem__)
            held = [0]
            for one in kept:
                held.append(held[-1] + bool(one))
            sources.append(best)
            helds.append(held)
            columns = min(columns, bisect_right(held, min(common[best], len(real) - 1)) - 1)
        if columns <= 0:
            self.close()
            return
        self.select(sources)
        await self._settle()
        for row, held in zip(self.rows, helds, strict=True):
            row.held = held[: columns + 1]
            row.cut(columns)

    async def copy(self) -> RowBatch:
        """A second batch that begins with the same rows."""
        await self._settle()
        twin = RowBatch(self._core, self.limit)
        twin._reserved = self._reserved
        forks: dict[int, Row] = {}

        async def fork(number: int) -> None:
            forks[number] = await self.rows[number].fork()

        try:
            await all_of(*(fork(number) for number in range(len(self.rows))))
        except BaseException:
            for row in forks.values():
                row.drop()
            raise
        twin.rows.extend(replace(forks[number], repaired=twin._repaired) for number in range(len(self.rows)))
        twin._chosen = list(self._chosen)
        return twin

    def _check_room(self, tokens: Sequence[Sequence[int]]) -> None:
        context = self._core.context
        held = self.lengths or [0] * len(tokens)
        longest = max(have + len(new) for have, new in zip(held, tokens, strict=True))
        if longest > context:
            raise UsageError(
                f"{longest} tokens are more than the model's context of {context}",
                hint=f"Shorten the prompt, or ask for {longest - context} fewer new tokens.",
            )
        if self.limit is not None and longest > self.limit:
            raise UsageError(
                f"{longest} tokens are more than the session's {self.limit}",
                hint=f"Open it with session(max_tokens={longest}) or more.",
            )

    async def _feed_row(self, row: Row, count: int, wanted: int) -> np.ndarray:
        """Feed what the hops of a row lack, of which its caller has just added ``count`` tokens."""
        if not count:
            return np.empty((0, self._core.local.residual_width), np.float32)
        session = await self._with_room(row)
        row.feeding = True
        new, want = row.ids[session.length :], Want.ALL
        if wanted < 2:
            want = Want.LAST if wanted else Want.NOTHING
        elif len(new) - wanted >= PREFILL_TOKENS:
            await session.append(new[:-wanted], want=Want.NOTHING)
            new = new[-wanted:]
        hidden = await session.append(new, want=want)
        row.feeding = False
        return hidden[len(hidden) - wanted :]

    async def _with_room(self, row: Row) -> SwarmSession:
        """The row's session, opened or made larger."""
        needed = len(row.ids)
        if row.session is not None and needed <= row.max_tokens:
            return row.session
        larger = self._reserved - (len(row.held) - 1 - needed)  # without padding
        if larger < needed:
            larger = max(needed + SPARE_TOKENS, 2 * row.max_tokens)
        larger = min(max(larger, row.max_tokens), self.limit or self._core.context)
        small = row.session
        if small is None:
            row.session = self._core.session(larger, prompt_tokens=needed)
        else:
            row.session = await small.fork(larger)
            small.close(keep=False)
            self._repaired.extend(small.repaired)
        row.max_tokens = larger
        return row.session

    def _undo(self, columns: int) -> None:
        for row in self.rows:
            row.cut(columns)
            if not columns:
                row.drop()


def _cheap_tokens(sessions: Sequence[SwarmSession]) -> int:
    """How many tokens are fed again faster than a fork is opened, which takes a round trip to every hop.

    They go with the next step anyway, so they cost only computing. 0 before any token was decoded.
    """
    best = 0
    for session in sessions:
        hops, chains = session.hops, [chain for chain in session.chains if chain.alone.steps]
        if not chains or not all(hop.decode.tokens for hop in hops):
            continue
        token_s = sum(hop.decode.compute_s / hop.decode.tokens for hop in hops)
        links = sum(len(chain.peer_ids) + 1 for chain in chains)
        round_trip_s = 2 * sum(chain.alone.wire_s / chain.alone.steps for chain in chains) / links
        best = max(best, int(round_trip_s / token_s) if token_s > 0 else MOST_FED_AGAIN)
    return min(MOST_FED_AGAIN, best)


def _take_over(spares: list[Row], source: Row, cheap: int) -> Row | None:
    """What ``source`` is, in the session of a spare row, which goes back to where both part: what differs is
    fed again with the next tokens. None where that is more than ``cheap`` tokens."""
    best, common = None, max(1, len(source.ids) - cheap)
    for spare in spares:
        if spare.session is not None and not spare.feeding:
            shared = min(_common(spare.ids, source.ids), spare.session.length)
            if shared >= common:
                best, common = spare, shared
    if best is None or best.session is None:
        return None
    session, best.session = best.session, None
    session.rollback(common)
    spares.remove(best)
    return Row(source.repaired, list(source.ids), list(source.held), session, best.max_tokens)


def _leaders(tokens: Sequence[Sequence[int]], mask: Sequence[Sequence[int]]) -> list[int]:
    """For each row, the first row that is equal to it."""
    first: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    return [
        first.setdefault((tuple(row), tuple(kept)), number)
        for number, (row, kept) in enumerate(zip(tokens, mask, strict=True))
    ]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for number, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return number
    return min(len(a), len(b))
