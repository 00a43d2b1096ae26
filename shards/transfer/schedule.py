"""Which source to ask for which piece: pure, no I/O, no clock; every call brings ``now`` in seconds.

Several peers that begin with nothing should together take each piece from the one that has the model (a
*whole* source) about once, and the rest from each other:

- each peer goes through the pieces from the first to the last, of neighbours in an order of its own, those
  that fewest hold first; one that nobody fetches beside of takes them just as they lie;
- a piece that some source with only a part of the model holds is never asked of a whole one, unless that
  source gives nothing for STALL_S;
- a whole source that has sent a piece to another peer says so (``elsewhere``); the piece is then awaited
  from there, and asked for again, with ``insist``, when it has not shown up within PROMISE_S;
- of several whole sources a hash says which one every peer asks for a piece first, so that this one knows
  where the piece went; one that has nothing else to do helps the others.

A source of the last resort (the hub) is asked only for what no other source could give.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ...swarm.timeouts import LEAST_RATE_BYTES_PER_S

STALL_S = 2.0
"""A source that was asked and sends nothing for this many seconds is asked for nothing more until it does,
and others are asked for the same."""
DEAD_S = 8.0
"""After this many seconds without a byte it is given up: it holds a place that others could have."""
LATE_S = 10.0
"""A piece that has not come this many seconds after it was asked for is asked of others too: the bytes that
flow may never make a piece."""
BACKLOG_S = 5.0
"""A source of a part whose full pipe takes more seconds than this is not waited for: its pieces are asked of
whole sources too. On a line of 10 Mbit/s a pipe takes less."""
PROMISE_S = 3.0
"""Seconds to wait for a piece that another peer was just sent, counted from the last news of that peer: on a
LAN it is there in milliseconds."""
LONGEST_PROMISE_S = 30.0
"""Seconds to wait for such a piece in all."""
PIPE_BYTES = 4 * 1024 * 1024
"""One source is asked for at most this many bytes at a time: more than is ever under way on a gigabit link
with 30 ms of delay."""
MAX_ASKED = 16
WINDOW = 384
"""Pieces are asked for from the first to the last, so that a file is hashed while it comes; this many
neighbours in an order of each peer's own, so that peers seldom ask for the same. With 64, three peers asked
the origin so often for the same that they took half as long again."""


@dataclass(frozen=True, slots=True)
class Request:
    """Ask ``peer`` for ``piece``. ``insist``: though it said that another peer has it."""

    peer: str
    piece: int
    insist: bool = False


@dataclass(slots=True)
class _Source:
    held: np.ndarray  # (pieces,) bool
    last_resort: bool
    heard_at: float
    """When it gave a piece, or was first asked after it had given all."""
    told_at: float
    """When it last said what it holds."""
    flowed_at: float = 0.0
    """When enough bytes last came from it."""
    received: int = 0
    """Bytes that had come from it at ``flowed_at``."""
    preferred: np.ndarray | None = None
    asked: dict[int, float] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    whole: bool = False

    def is_stalled(self, now: float) -> bool:
        return self.silent_s(now) > STALL_S

    def silent_s(self, now: float) -> float:
        """Seconds for which it owes a piece and sends nothing."""
        return now - max(self.heard_at, self.flowed_at) if self.asked else 0.0

    def is_behind(self, now: float, depth: int) -> bool:
        return len(self.asked) >= depth and now - min(self.asked.values()) > BACKLOG_S


class PieceSchedule:
    """``own_id`` gives this peer's own order of the pieces."""

    def __init__(self, n_pieces: int, piece_size: int, own_id: str) -> None:
        self.depth = max(2, min(MAX_ASKED, PIPE_BYTES // piece_size))
        seed = int.from_bytes(hashlib.sha256(own_id.encode()).digest()[:8])
        mixed = np.random.default_rng(seed).permutation(n_pieces)
        self._order = np.arange(n_pieces) // WINDOW * n_pieces + mixed
        self._wanted = np.zeros(n_pieces, dtype=bool)
        self._sources: dict[str, _Source] = {}
        self._in_flight = np.zeros(n_pieces, dtype=np.int16)  # how many sources are asked for it
        self._promised: dict[int, tuple[str, float]] = {}
        self._insist: set[int] = set()

    @property
    def n_wanted(self) -> int:
        return int(self._wanted.sum())

    @property
    def sources(self) -> frozenset[str]:
        return frozenset(self._sources)

    def want(self, pieces: Iterable[int]) -> None:
        self._wanted[np.fromiter(pieces, dtype=np.int64)] = True

    def is_wanted(self, piece: int) -> bool:
        return 0 <= piece < len(self._wanted) and bool(self._wanted[piece])

    def add(self, peer: str, held: np.ndarray, now: float, *, last_resort: bool = False) -> None:
        """A source with what it holds: (pieces,) bool."""
        self.remove(peer)
        source = self._sources[peer] = _Source(held.astype(bool), last_resort, now, now)
        source.whole = bool(source.held.all())
        self._rank_whole()

    def remove(self, peer: str) -> None:
        """The source is gone; what it was asked for is free again."""
        source = self._sources.pop(peer, None)
        if source is None:
            return
        for piece in source.asked:
            self._in_flight[piece] -= 1
        for piece in [piece for piece, (to, _) in self._promised.items() if to == peer]:
            self._break_promise(piece)
        self._rank_whole()

    def has(self, peer: str, pieces: Iterable[int], now: float) -> None:
        """The source holds these too, now."""
        source = self._sources.get(peer)
        if source is None:
            return
        source.told_at = now
        pieces = list(pieces)
        source.held[pieces] = True
        source.refused.difference_update(pieces)
        if not source.whole and source.held.all():
            source.whole = True
            self._rank_whole()

    def was_asked(self, peer: str, piece: int) -> bool:
        return peer in self._sources and piece in self._sources[peer].asked

    def got(self, peer: str, piece: int, now: float) -> None:
        """The source gave the piece, and it was right."""
        self._answered(peer, piece, now)
        self.arrived(piece)

    def arrived(self, piece: int) -> None:
        """The piece is here, wherever it came from."""
        self._wanted[piece] = False
        self._promised.pop(piece, None)
        self._insist.discard(piece)

    def elsewhere(self, peer: str, piece: int, other: str, now: float) -> None:
        """The source says that it sent the piece to ``other``, which will serve it."""
        self._answered(peer, piece, now)
        if self.is_wanted(piece):
            self._promised[piece] = (other, now)
            if other in self._sources and piece in self._sources[other].refused:
                self._break_promise(piece)

    def unreachable(self, other: str) -> None:
        """A peer that was said to have pieces cannot be asked."""
        for piece in [piece for piece, (to, _) in self._promised.items() if to == other]:
            self._break_promise(piece)

    def refused(self, peer: str, piece: int, now: float) -> None:
        """The source does not give the piece: it is not asked for it again."""
        self._answered(peer, piece, now)
        if peer in self._sources:
            source = self._sources[peer]
            source.held[piece] = False
            source.refused.add(piece)
            source.whole = False
            self._rank_whole()
        if piece in self._promised and self._promised[piece][0] == peer:
            self._break_promise(piece)

    def flowed(self, peer: str, received: int, now: float) -> None:
        """``received`` bytes have come from a source in all. A trickle does not count."""
        source = self._sources.get(peer)
        if source is None:
            return
        least = LEAST_RATE_BYTES_PER_S * (now - max(source.flowed_at, source.heard_at))
        if received - source.received > max(0.0, least):
            source.flowed_at, source.received = now, received

    def dead(self, now: float) -> list[str]:
        """Sources that were asked and sent nothing for DEAD_S."""
        return [peer for peer, source in self._sources.items() if source.silent_s(now) > DEAD_S]

    def stalled(self, now: float) -> list[str]:
        """Sources that were asked and send nothing at present."""
        return [peer for peer, s in self._sources.items() if s.is_stalled(now) and not s.last_resort]

    def can_come(self) -> bool:
        """Whether every wanted piece is held by some source."""
        held = np.zeros(len(self._wanted), dtype=bool)
        for source in self._sources.values():
            held |= source.held
        return not (self._wanted & ~held).any()

    def requests(self, now: float) -> list[Request]:
        """What to ask for now; counted as asked."""
        for piece in [piece for piece, (to, at) in self._promised.items() if self._is_over(to, at, now)]:
            self._break_promise(piece)
        if not self._wanted.any():
            return []
        live = [s for s in self._sources.values() if not s.is_stalled(now)]
        stalled = np.zeros(len(self._wanted), dtype=np.int16)  # asked only of sources that give nothing
        late = np.zeros(len(self._wanted), dtype=bool)
        for source in self._sources.values():
            if source.is_stalled(now):
                stalled[list(source.asked)] += 1
            else:
                overdue = [piece for piece, at in source.asked.items() if now - at > LATE_S]
                stalled[overdue] += 1
                late[overdue] = True
        free = self._wanted & (self._in_flight <= stalled)
        holders = np.zeros(len(self._wanted), dtype=np.int16)
        in_parts = np.zeros(len(self._wanted), dtype=bool)  # held by live sources that have only a part
        anywhere = np.zeros(len(self._wanted), dtype=bool)  # held by any live source but the last resort
        for source in live:
            holders += source.held
            if not source.last_resort:
                anywhere |= source.held
                if not source.whole and not source.is_behind(now, self.depth):
                    in_parts |= source.held & ~late
        promised = np.zeros(len(self._wanted), dtype=bool)
        promised[list(self._promised)] = True
        alone = not self._promised and all(s.whole or s.last_resort for s in self._sources.values())
        found: list[Request] = []
        for peer, source in sorted(self._sources.items(), key=lambda item: (item[1].whole, item[0])):
            room = self.depth - len(source.asked)
            if room <= 0 or source.is_stalled(now):
                continue
            mine = free & source.held
            mine[list(source.asked)] = False
            if source.last_resort:
                mine &= ~(anywhere | promised)
            elif source.whole:
                there = [piece for piece, (to, _) in self._promised.items() if to == peer]
                awaited = in_parts | promised
                awaited[there] = in_parts[there]
                mine &= ~awaited
            pieces = np.flatnonzero(mine)
            if not len(pieces):
                continue
            # The last counts most.
            keys: list[np.ndarray] = [pieces if alone else self._order[pieces], holders[pieces]]
            if source.whole and source.preferred is not None:
                keys.append(~source.preferred[pieces])
            for piece in pieces[np.lexsort(tuple(keys))][:room].tolist():
                if not source.asked:
                    source.heard_at = now
                source.asked[piece] = now
                self._in_flight[piece] += 1
                free[piece] = False
                found.append(Request(peer, piece, piece in self._insist))
        return found

    def _answered(self, peer: str, piece: int, now: float) -> None:
        source = self._sources.get(peer)
        if source is not None and source.asked.pop(piece, None) is not None:
            self._in_flight[piece] -= 1
            source.heard_at = now

    def _is_over(self, to: str, at: float, now: float) -> bool:
        source = self._sources.get(to)
        news = at if source is None else max(at, source.told_at)
        return now - news > PROMISE_S or now - at > LONGEST_PROMISE_S

    def _break_promise(self, piece: int) -> None:
        if self._promised.pop(piece, None) is not None and self._wanted[piece]:
            self._insist.add(piece)

    def _rank_whole(self) -> None:
        """Which whole source every peer asks first for a piece: the one of the highest hash."""
        whole = sorted(peer for peer, s in self._sources.items() if s.whole and not s.last_resort)
        for source in self._sources.values():
            source.preferred = None
        if len(whole) < 2:
            return
        numbers = np.arange(len(self._wanted), dtype=np.uint64)
        scores = np.stack([_mixed(numbers, peer) for peer in whole])
        best = scores.argmax(axis=0)
        for number, peer in enumerate(whole):
            self._sources[peer].preferred = best == number


def _mixed(numbers: np.ndarray, peer: str) -> np.ndarray:
    """A hash of each number with the peer: splitmix64."""
    salt = np.uint64(int.from_bytes(hashlib.sha256(peer.encode()).digest()[:8]))
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15) + salt
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
