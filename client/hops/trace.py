"""Where the time of a generation went: per hop queue, compute and codec, per chain the wire; and on this
side. What repairs have cost, and which side paid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from ...swarm.types import Route, Span, short_peer_id

PASSED_OVER_TOLD = 8
"""At most this many peers that were passed over are named in JSON: there may be hundreds."""


@dataclass(slots=True)
class Phase:
    """Sums over the steps of a prefill or of decoding at one hop, or on a chain of hops. Times in seconds.

    ``queue_s`` and ``compute_s`` are the nodes' own measurements. ``codec_s`` is encoding and decoding on
    both sides. ``wire_s`` is the rest of the time between sending a step and having its result: the
    network, and event loops that were busy; 0 at a hop that is chained with others, since only the sum of
    their links' times can be measured. In a prefill hops work at the same time, so their times overlap.
    """

    steps: int = 0
    tokens: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    codec_s: float = 0.0
    wire_s: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0

    @property
    def seconds(self) -> float:
        return self.queue_s + self.compute_s + self.codec_s + self.wire_s

    def stepped(self, tokens: int, bytes_sent: int, bytes_received: int, wire_s: float) -> None:
        """One more step."""
        self.steps += 1
        self.tokens += tokens
        self.bytes_sent += bytes_sent
        self.bytes_received += bytes_received
        self.wire_s += wire_s

    def spent(self, queue: int, compute: int, codec: int, unit_s: float) -> None:
        """What a node says that a step took, in units of ``unit_s`` seconds."""
        self.queue_s += queue * unit_s
        self.compute_s += compute * unit_s
        self.codec_s += codec * unit_s

    def coded(self, seconds: float) -> None:
        """What encoding or decoding took on this side."""
        self.codec_s += seconds

    def as_dict(self) -> dict[str, object]:
        """Totals for JSON, times in milliseconds."""
        times = {
            name.replace("_s", "_ms"): round(getattr(self, name) * 1000, 4)
            for name in ("queue_s", "compute_s", "codec_s", "wire_s")
        }
        counts = {name: getattr(self, name) for name in ("steps", "tokens", "bytes_sent", "bytes_received")}
        return {**counts, **times}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Traced:
    """What prefill and decoding have cost. The session that is traced adds to its phases as it goes on.

    ``decode``: a step that was sent behind others took what came after their results. ``alone``: the steps of
    ``decode`` that were sent while no other was under way: of hops and links, only these tell what a step
    takes there.
    """

    prefill: Phase = field(default_factory=Phase)
    decode: Phase = field(default_factory=Phase)
    alone: Phase = field(default_factory=Phase)

    def phase(self, decoding: bool) -> Phase:
        return self.decode if decoding else self.prefill

    def timings(self) -> Self:
        """As it is now; later steps change it no more."""
        return replace(
            self, prefill=replace(self.prefill), decode=replace(self.decode), alone=replace(self.alone)
        )


@dataclass(frozen=True, slots=True)
class ChainTimings(_Traced):
    """Hops that pass activations on to each other; one hop where the client carries them on both sides.

    ``wire_s`` of the phases is all that the hops did not account for: the way to the first of them, between
    them, and back from the last. ``bytes_sent`` and ``bytes_received`` are this client's.
    """

    peer_ids: tuple[str, ...]

    @property
    def wire_ms_per_token(self) -> float:
        """Milliseconds that a decoded token spent on links; a prompt token if none was decoded."""
        phase = self.decode if self.decode.tokens else self.prefill
        return phase.wire_s * 1000 / max(1, phase.tokens)

    def as_dict(self) -> dict[str, object]:
        """For JSON; ``wire_ms`` for one token."""
        return {
            "peer_ids": list(self.peer_ids),
            "wire_ms": round(self.wire_ms_per_token, 4),
            "prefill": _wire(self.prefill),
            "decode": _wire(self.decode),
        }


def _wire(phase: Phase) -> dict[str, object]:
    counts = {name: getattr(phase, name) for name in ("steps", "tokens", "bytes_sent", "bytes_received")}
    return {**counts, "wire_ms": round(phase.wire_s * 1000, 4)}


RepairKind = Literal["replay", "relay", "reopen", "planned"]


@dataclass(frozen=True, slots=True)
class Repair:
    """One repair of a route. ``lost``: peer ids of the hops that were replaced. ``seconds``: from when it was
    noticed until tokens came again.

    ``kind``: "replay", hops were replaced and fed from their neighbours' journals; "relay", an edge between
    two hops goes through the client now; "reopen", another route was fed from the token ids; "planned", a
    slow hop was replaced while it worked. ``reason``: one of a few words for ``cause``.
    ``replayed_tokens``: computed once more, at all hops together. ``replayed_bytes_nodes`` and
    ``replayed_bytes_client``: activations that nodes, and the client, had to send once more.
    """

    kind: RepairKind
    lost: tuple[str, ...]
    cause: str
    seconds: float
    replayed_tokens: int = 0
    replayed_bytes_nodes: int = 0
    replayed_bytes_client: int = 0
    reason: str = ""

    def as_dict(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "lost": list(self.lost),
            "cause": self.cause,
            "reason": self.reason,
            "seconds": round(self.seconds, 6),
            "replayed_tokens": self.replayed_tokens,
            "replayed_bytes_nodes": self.replayed_bytes_nodes,
            "replayed_bytes_client": self.replayed_bytes_client,
        }


def repair_sentence(repair: Repair, before: Route | None, after: Route | None) -> tuple[str, list[str]]:
    """A line on one repair, and the ids of the peers that took over. ``before`` and ``after``: None if no
    route was known."""
    old = {hop.peer_id for hop in before.hops} if before is not None else set()
    new = [hop.peer_id for hop in after.hops if hop.peer_id not in old] if after is not None else []
    lost, took = _names(repair.lost), _names(new)
    seconds = f"{repair.seconds:.1f} s"
    if repair.kind == "planned":
        return f"hop {lost} was slow, {took or 'another'} took over in {seconds}", new
    if repair.kind == "relay":
        return f"two hops lost each other; in {seconds} this machine took over what goes between them", new
    if lost and took:
        return f"hop {lost} was lost, {took} took over in {seconds}", new
    if lost:
        return f"hop {lost} was lost, the others took over in {seconds}", new
    return f"the route was interrupted and went on after {seconds}", new


def _names(peer_ids: Sequence[str]) -> str:
    return ", ".join(map(short_peer_id, peer_ids))


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A peer that was tried for a route and is in none, and why."""

    peer_id: str
    cause: str


def passed_over_dict(peers: Sequence[PassedOver]) -> dict[str, object]:
    """For JSON: how many, and the first of them."""
    first = [{"peer_id": peer.peer_id, "cause": peer.cause} for peer in peers[:PASSED_OVER_TOLD]]
    return {"count": len(peers), "first": first}


@dataclass(slots=True)
class Ways:
    """How streams go (``swarm.transport.direct_maddrs.Way``): ``here``, from the client to a hop, and ``on``,
    from it to the next; "" where that is not known, or the client carries what goes there."""

    here: str = ""
    on: str = ""


NEWEST_BATCH = 0.1
"""The weight of a step's batch in the moving average of them."""


@dataclass(slots=True)
class HopLoad:
    """How busy a hop is, as it tells. ``row_s``: seconds that one row more in a batch takes there; 0: not
    known. ``sessions``: those computed together, the own one too, on average."""

    row_s: float = 0.0
    sessions: float = 1.0

    def told(self, row_us: int) -> None:
        """What a row takes, in microseconds; 0: the hop does not know."""
        self.row_s = row_us * 1e-6 or self.row_s

    def computed_with(self, sessions: int) -> None:
        """A step with a certain row was computed together with those of ``sessions``, the own one too."""
        self.sessions += NEWEST_BATCH * (max(1, sessions) - self.sessions)


@dataclass(frozen=True, slots=True)
class HopTimings(_Traced):
    """One hop of a route and what it cost. ``codec`` is how activations travelled to it, ``codec_on`` how
    they went on. ``bytes_sent`` and ``bytes_received`` are what went into it and came out of it, from and to
    any neighbour."""

    peer_id: str
    span: Span
    codec: str
    ways: Ways = field(default_factory=Ways)
    name: str = ""
    codec_on: str = ""
    load: HopLoad = field(default_factory=HopLoad)

    @property
    def ms_per_token(self) -> float:
        """Milliseconds that a decoded token spent at this hop, and on links unless it is chained; of
        a prompt token if none was decoded."""
        return self._per_token(self._phase.seconds)

    @property
    def bytes_sent(self) -> int:
        return self.prefill.bytes_sent + self.decode.bytes_sent

    @property
    def bytes_received(self) -> int:
        return self.prefill.bytes_received + self.decode.bytes_received

    def as_dict(self) -> dict[str, object]:
        """For JSON. ``blocks`` inclusive, as the command line writes them; ``ms_per_token`` and its four
        parts for one decoded token (of the prompt where none was), ``prefill`` and ``decode`` totals."""
        phase = self._phase
        return {
            "peer_id": self.peer_id,
            "name": self.name,
            "blocks": str(self.span),
            "codec": self.codec,
            "codec_on": self.codec_on,
            "way": self.ways.here,
            "way_on": self.ways.on,
            "ms_per_token": round(self.ms_per_token, 4),
            "queue_ms": round(self._per_token(phase.queue_s), 4),
            "compute_ms": round(self._per_token(phase.compute_s), 4),
            "codec_ms": round(self._per_token(phase.codec_s), 4),
            "wire_ms": round(self._per_token(phase.wire_s), 4),
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "prefill": self.prefill.as_dict(),
            "decode": self.decode.as_dict(),
        }

    @property
    def _phase(self) -> Phase:
        return self.decode if self.decode.tokens else self.prefill

    def _per_token(self, seconds: float) -> float:
        """Milliseconds."""
        return seconds * 1000 / max(1, self._phase.tokens)


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one generation as its client saw them.

    ``route_s``: until the hops of the first route were open. ``prefill_s``: from then to the first token.
    ``decode_s``: from the first token to the last. ``local_s``: the part of all this that embedding, head and
    sampling took on this machine, waiting for other generations' included. ``repair_s``: the part lost to
    hops that failed. ``cached_tokens``: the part of ``prompt_tokens`` that the hops held already.
    """

    route_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    local_s: float = 0.0
    repair_s: float = 0.0
    prompt_tokens: int = 0
    new_tokens: int = 0
    cached_tokens: int = 0

    @property
    def first_token_s(self) -> float:
        return self.route_s + self.prefill_s

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed: tokens after the first over the time they took; 0 for a single token."""
        return (self.new_tokens - 1) / self.decode_s if self.new_tokens > 1 and self.decode_s > 0 else 0.0

    def as_dict(self) -> dict[str, object]:
        times = ("route_s", "prefill_s", "decode_s", "local_s", "repair_s", "first_token_s", "tokens_per_s")
        counts = {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "new_tokens": self.new_tokens,
        }
        return {**{name: round(getattr(self, name), 6) for name in times}, **counts}


DEPTHS_TOLD = 8
"""Guesses further ahead than this many count with the last of them."""


@dataclass(frozen=True, slots=True)
class GuessCounts:
    """Guesses of one source (``kind``) that were judged, those before them being right, and of these the
    ``right`` ones: for the first guess behind a certain token, the second, and so on to DEPTHS_TOLD."""

    kind: str
    judged: tuple[int, ...]
    right: tuple[int, ...]

    def as_dict(self) -> dict[str, object]:
        return {"kind": self.kind, "judged": list(self.judged), "right": list(self.right)}


@dataclass(frozen=True, slots=True)
class Speculated:
    """What drafts have brought: in ``passes``, which each begin with a certain token while nothing is under
    way, ``drafted`` tokens were fed before they were chosen, of which ``accepted`` were. The others are rows
    that hops computed for nothing. ``draft_s``: seconds that drafting took.

    ``trip_s``: what a plain token takes, as far as that was measured or predicted, 0: neither; ``row_s``:
    what one row more takes at the slowest hop. ``price``: how likely a guess had to be, at last, so that
    others on the same hops do not pay for it. ``kinds``: how often guesses were right.
    """

    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_s: float = 0.0
    trip_s: float = 0.0
    row_s: float = 0.0
    price: float = 0.0
    kinds: tuple[GuessCounts, ...] = ()

    def tokens_per_trip(self, new_tokens: int, decode_s: float) -> float:
        """Tokens after the first for each ``trip_s`` that passed; 0 where that is not known."""
        return (new_tokens - 1) * self.trip_s / decode_s if decode_s > 0 and new_tokens > 1 else 0.0

    def most_per_trip(self, new_tokens: int) -> float:
        """Tokens a trip, if nothing but misses cost a trip: each miss costs one under every policy, with its
        own row in it; and each other token a row at the slowest hop. 0 where ``trip_s`` is not known."""
        tokens = new_tokens - 1
        if tokens < 1 or self.trip_s <= 0:
            return 0.0
        misses = max(1, tokens - self.accepted)
        row_s = min(self.row_s, self.trip_s)  # a trip computes one
        return tokens * self.trip_s / (misses * self.trip_s + max(0, tokens - misses) * row_s)

    def as_dict(self, new_tokens: int, decode_s: float) -> dict[str, object]:
        """For JSON, of an answer of so many tokens in so many seconds."""
        return {
            "passes": self.passes,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "draft_s": round(self.draft_s, 6),
            "trip_ms": round(self.trip_s * 1000, 4),
            "row_ms": round(self.row_s * 1000, 4),
            "price": round(self.price, 4),
            "tokens_per_trip": round(self.tokens_per_trip(new_tokens, decode_s), 4),
            "most_per_trip": round(self.most_per_trip(new_tokens), 4),
            "kinds": [each.as_dict() for each in self.kinds],
        }
