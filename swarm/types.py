"""The vocabulary as small frozen types: spans, model references, node announcements, routes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

from .errors import UsageError

MAX_BLOCKS = 4096
"""More transformer blocks than any model has; bounds what a peer may claim."""

MAX_RECORD_BYTES = 4096
"""A signed record. A usual one has 500-900 bytes; the bound leaves room for a dozen long addresses."""

MAX_ROW = 65536
"""Values of a token at a boundary of blocks: some codecs number them with a uint16."""

MAX_SCALES = 12288
"""Channels that a table of scales may have (``codecs.scales``). The header of an OPEN holds two such tables
beside all else that it may hold."""

_INCLUSIVE = re.compile(r"^(\d{1,4})-(\d{1,4})$")
_HALF_OPEN = re.compile(r"^(\d{1,4}):(\d{1,4})$")
_SINGLE = re.compile(r"^(\d{1,4})$")


MAX_NODE_NAME = 32
"""Characters of the name that a person gives a node."""


def short_peer_id(peer_id: str, name: str = "") -> str:
    """The end of a PeerID, where they differ: as people see peers, in tables and messages alike. Behind the
    ``name`` of a node that has one: anybody may take any name, so it never stands alone."""
    return f"{name} …{peer_id[-6:]}" if name else f"…{peer_id[-6:]}"


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A contiguous range of blocks, half-open: ``Span(0, 21)`` holds blocks 0 to 20."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= MAX_BLOCKS:
            raise UsageError(
                f"blocks {self.start}:{self.end} are not a span",
                hint="The first block comes first: 0-20 (inclusive) or 0:21 (half-open); the last is "
                f"{MAX_BLOCKS - 1} at most.",
            )

    def __len__(self) -> int:
        return self.end - self.start

    def __contains__(self, block: int) -> bool:
        return self.start <= block < self.end

    def __str__(self) -> str:
        """As the command line writes it, inclusive: ``0-20``."""
        return f"{self.start}-{self.end - 1}"

    def covers(self, other: Span) -> bool:
        return self.start <= other.start and other.end <= self.end

    @classmethod
    def parse(cls, text: str) -> Span:
        """``0-20`` is inclusive like pages, ``0:21`` half-open like Python, ``7`` one block.

        Raises UsageError with an example for anything else.
        """
        text = text.strip()
        if match := _INCLUSIVE.match(text):
            start, end = int(match[1]), int(match[2]) + 1
        elif match := _HALF_OPEN.match(text):
            start, end = int(match[1]), int(match[2])
        elif match := _SINGLE.match(text):
            start, end = int(match[1]), int(match[1]) + 1
        else:
            raise UsageError(
                f"cannot read {text!r} as a span of blocks",
                hint="Write 0-20 (blocks 0 to 20), 0:21 (the same, half-open) or 7 (one block).",
            )
        try:
            return cls(start, end)
        except UsageError as error:
            raise UsageError(f"{text!r} is not a span of blocks", hint=error.hint) from None


@dataclass(frozen=True, slots=True)
class ModelRef:
    """What every hop of a route must agree on: a name for people and a digest for machines.

    ``digest``: 64 lowercase hex characters, a hash over every file that shapes the model's answers.
    ``parts``: the beginnings of the hashes of what it consists of, so that people are told what differs; ""
    where nobody said. ``root``: that of the files here, where it is known; else "". Neither makes two
    references of one model differ.
    """

    name: str
    digest: str
    n_blocks: int
    parts: str = field(default="", compare=False)
    root: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.name}@{self.digest[:12]}"


class NodeState(StrEnum):
    JOINING = "joining"
    ONLINE = "online"
    DRAINING = "draining"


MAX_PEER_LINKS = 16
"""Links to other nodes that one announces: those that a route may well use."""


@dataclass(frozen=True, slots=True)
class PeerLink:
    """A node's own measurement of its way to another: round trip in seconds; bytes per second, 0: unknown."""

    peer_id: str
    rtt_s: float
    bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """An announcement as its owner signed it, which every peer that gets it can check. ``expiration``:
    seconds of Unix time. ``value``: as it lies in the directory."""

    expiration: float
    value: bytes


@dataclass(frozen=True, slots=True, order=True)
class Incarnation:
    """One of the processes that announce themselves under an identity; a healthy one has one at a time.
    ``since``: seconds of Unix time, when the directory first took its announcement. ``nonce``: its own."""

    since: float
    nonce: str


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What a node announces. Speeds are its own measurements; 0 means not measured yet.

    ``decode_ms_per_block``: one decode token through one block, batch 1, milliseconds; each 1000 tokens of
    context add ``context_ms_per_block``.
    ``prefill_tokens_per_s``: tokens per second through the whole span, in chunks.
    ``free_kv_tokens`` / ``total_kv_tokens``: KV cache in tokens of the whole span.
    ``free_states`` / ``total_states``: for how many sessions over the whole span there is memory of its
    blocks that keep a state; both are 0 where no block does.
    ``weights``: how the weights are held, for people ("int4", "bf16"). ``device``: what computes, for people
    ("cpu", "cuda").
    Load, measured over the last seconds: ``queue_ms`` is how long a decode step waits before it is computed,
    ``tokens_per_s`` what all sessions together got, ``sessions`` how many are open. ``links``: to nodes that
    may come before or after it in a chain, MAX_PEER_LINKS at most.
    ``journal_bytes`` of ``total_journal_bytes``: kept of what sessions sent on, for a replacement.
    ``row_check``: of a node that computes deterministically, the digest of its check in hexadecimal; else "".
    ``coarse``: kinds of codecs that it reads, but that lose too much of the rows which come to it: nobody
    should begin with one.
    ``max_blocks``: how many blocks it could hold instead, so that others can plan with it; 0: its blocks are
    not up for a change (a person chose them, or it is loading them). JOINING with ``max_blocks`` above 0 is a
    node that has not begun to load: ``span`` is what it means to serve.
    ``weights_root``: of a node that has the model's files whole, or fetched some of them under this root, the
    SHA-256 of their piece manifest; else "". ``weights_whole``: it has hashed every byte of them itself, and
    no peer sent them: its root bears witness. ``shares_weights``: it gives others what it has of them.
    ``direct_maddrs``: where it listens itself, beside its daemon; each is marked as that.
    ``up_bytes_per_s`` and ``down_bytes_per_s``: what a person limits its line to; 0: nothing.
    ``name``: what a person calls it, printable and MAX_NODE_NAME characters at most; nobody vouches for it.
    ``incarnation``: which process says this, put in by the directory that announces it.
    ``record``: what all this was read from, to be handed on.
    """

    peer_id: str
    maddrs: tuple[str, ...]
    model: ModelRef
    span: Span
    state: NodeState
    decode_ms_per_block: float = 0.0
    prefill_tokens_per_s: float = 0.0
    free_kv_tokens: int = 0
    total_kv_tokens: int = 0
    codecs: tuple[str, ...] = ()
    weights: str = ""
    version: str = ""
    queue_ms: float = 0.0
    tokens_per_s: float = 0.0
    sessions: int = 0
    links: tuple[PeerLink, ...] = ()
    journal_bytes: int = 0
    total_journal_bytes: int = 0
    row_check: str = ""
    coarse: tuple[str, ...] = ()
    max_blocks: int = 0
    weights_root: str = ""
    weights_whole: bool = False
    shares_weights: bool = False
    direct_maddrs: tuple[str, ...] = ()
    device: str = ""
    name: str = ""
    up_bytes_per_s: int = 0
    down_bytes_per_s: int = 0
    context_ms_per_block: float = 0.0
    free_states: int = 0
    total_states: int = 0
    incarnation: Incarnation | None = field(default=None, compare=False)
    record: SignedRecord | None = field(default=None, compare=False, repr=False)

    @property
    def dial_maddrs(self) -> tuple[str, ...]:
        """Where a transport that knows the direct ones dials it."""
        return (*self.direct_maddrs, *self.maddrs)


@dataclass(frozen=True, slots=True)
class Hop:
    """A node and the sub-span of it that a route uses. ``record``: which proves ``maddrs`` to other nodes.
    ``name``: what a person calls the node."""

    peer_id: str
    span: Span
    maddrs: tuple[str, ...] = ()
    record: SignedRecord | None = field(default=None, compare=False, repr=False)
    name: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Route:
    """Hops that cover blocks 0..n exactly once, in order. ``seconds_per_token`` is the prediction."""

    hops: tuple[Hop, ...]
    seconds_per_token: float = 0.0

    def __str__(self) -> str:
        return " → ".join(f"{hop.peer_id[-6:]}[{hop.span}]" for hop in self.hops)
