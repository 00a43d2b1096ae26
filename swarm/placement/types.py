"""What the planner is told of a machine and a model, and what it answers."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from enum import StrEnum

from ..boundaries import is_cut, span_inside
from ..errors import UsageError
from ..types import PeerLink, Span


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What serving a model costs. ``block_bytes``: one block's weights as the node would hold them.

    ``kv_bytes``: keys and values of one token in one block. ``context_tokens``: a node keeps room for at
    least this many tokens in each of its blocks. ``state_bytes``: states of the sessions that it keeps room
    for, in one block. ``activation_bytes``: one token's row on the wire, one way;
    ``row_bytes``: at each boundary, where they differ (then that is their mean). ``cuts``: where spans may
    begin and end, as in ``swarm.boundaries``.
    Where blocks differ, ``rooms`` has the bytes of each, weights, one context and states; ``times`` has how
    long each takes beside the mean, which is 1. ``block_bytes``, ``kv_bytes`` and ``state_bytes`` are means
    then.
    """

    n_blocks: int
    block_bytes: int
    kv_bytes: int = 0
    context_tokens: int = 0
    activation_bytes: int = 4096
    rooms: tuple[int, ...] = ()
    times: tuple[float, ...] = ()
    row_bytes: tuple[int, ...] = ()
    cuts: tuple[int, ...] = ()
    state_bytes: int = 0

    def __post_init__(self) -> None:
        Span(0, self.n_blocks)  # raises for an impossible number
        others = self.kv_bytes, self.context_tokens, self.activation_bytes, self.state_bytes
        if self.block_bytes < 1 or min(others) < 0:
            raise UsageError("a model's shape needs block_bytes of at least 1, and no negative number")
        for each in (self.rooms, self.times):
            if each and (len(each) != self.n_blocks or min(each) <= 0):
                raise UsageError(
                    f"a model's shape needs a positive number for each of {self.n_blocks} blocks"
                )

    @property
    def closed(self) -> list[int]:
        """The boundaries where no span may begin or end."""
        return [boundary for boundary in range(self.n_blocks + 1) if not is_cut(boundary, self.cuts)]

    def spans_of(self, most: int) -> list[Span]:
        """The longest spans of up to ``most`` blocks, one for each place where one may begin, without those
        that lie within another."""
        found: list[Span] = []
        for start in range(self.n_blocks):
            if is_cut(start, self.cuts):
                span = span_inside(Span(start, min(start + most, self.n_blocks)), self.cuts)
                if span is not None and not (found and found[-1].covers(span)):
                    found.append(span)
        return found

    def room(self, span: Span) -> int:
        """Bytes of the weights of these blocks, of their keys and values of one context, and of their
        states."""
        if self.rooms:
            return sum(self.rooms[span.start : span.end])
        return len(span) * (self.block_bytes + self.kv_bytes * self.context_tokens + self.state_bytes)

    def room_of(self, blocks: int) -> int:
        """Bytes that any ``blocks`` neighbouring blocks take at most."""
        starts = range(self.n_blocks - blocks + 1 if self.rooms else 1)
        return max((self.room(Span(start, start + blocks)) for start in starts), default=0) if blocks else 0

    def max_blocks(self, memory_bytes: int) -> int:
        """How many neighbouring blocks, whichever, fit into a node's memory with room for their KV cache; 0
        to ``n_blocks``."""
        if not self.rooms:
            return max(0, min(self.n_blocks, memory_bytes // self.room_of(1)))
        return bisect_right(range(1, self.n_blocks + 1), memory_bytes, key=self.room_of)

    def mean_time(self, span: Span) -> float:
        """How long one of these blocks takes in the mean, beside the mean of all."""
        times = self.times[span.start : span.end]
        return sum(times) / len(times) if times else 1.0


@dataclass(frozen=True, slots=True)
class NodeOffer:
    """What a machine could do, before it has loaded anything.

    ``memory_bytes``: free for weights and KV cache. ``decode_ms_per_block``: one decode token through the
    mean block, batch 1. ``prefill_tokens_per_s``: tokens of a prompt through **one** block, 0: not measured
    (a NodeInfo's figure is for its whole span). ``links``: its round trips to other nodes.
    """

    peer_id: str
    memory_bytes: int
    decode_ms_per_block: float
    prefill_tokens_per_s: float = 0.0
    links: tuple[PeerLink, ...] = ()

    def __post_init__(self) -> None:
        if not self.peer_id:
            raise UsageError("an offer needs the peer id of its node")
        for name in ("memory_bytes", "decode_ms_per_block", "prefill_tokens_per_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} of an offer is {getattr(self, name)}")


class Gain(StrEnum):
    """What a span would be served for."""

    COVER = "cover"
    """It serves blocks that no node serves."""
    FASTER = "faster"
    """The best route takes less time per token."""
    THROUGHPUT = "throughput"
    """The swarm computes more tokens per second for all."""
    SPARE = "spare"
    """Another copy where there are few."""


@dataclass(frozen=True, slots=True)
class Serve:
    """Serve ``span``. ``why``: for people, such as "serve 12-20, 2.1 GB, the route gets 18 % faster".

    ``memory_bytes``: weights, and KV cache of one context. ``token_s``: seconds per token of the best route
    with it, and ``token_s_before`` without; None where blocks are missing. ``tokens_per_s`` and
    ``tokens_per_s_before``: what all nodes together could compute, one token at a time each (batches give
    more); 0 where blocks are missing.
    """

    span: Span
    gain: Gain
    why: str
    memory_bytes: int
    token_s: float | None
    token_s_before: float | None
    tokens_per_s: float
    tokens_per_s_before: float

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "verdict": "serve",
            "blocks": str(self.span),
            "gain": str(self.gain),
            "why": self.why,
            "memory_bytes": self.memory_bytes,
            "token_ms": _ms(self.token_s),
            "token_ms_before": _ms(self.token_s_before),
            "tokens_per_s": round(self.tokens_per_s, 3),
            "tokens_per_s_before": round(self.tokens_per_s_before, 3),
        }


@dataclass(frozen=True, slots=True)
class StandBy:
    """Serve nothing for now. ``why``: one line for people."""

    why: str

    def as_dict(self) -> dict[str, object]:
        return {"verdict": "stand_by", "why": self.why}


@dataclass(frozen=True, slots=True)
class Stay:
    """Keep the span that is served. ``why``: one line for people. ``mover``: the peer that should move first,
    "" if none should."""

    why: str
    mover: str = ""

    def as_dict(self) -> dict[str, object]:
        return {"verdict": "stay", "why": self.why, "mover": self.mover}


Verdict = Serve | StandBy


def gigabytes(count: float) -> str:
    """For people: ``2.1 GB``, ``350 MB``, ``45 kB``."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 or not count else f"{count / 1e3:.0f} kB"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 4)
