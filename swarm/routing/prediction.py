"""What a route should cost: by hop and edge for a decoded token, and as a pipeline for a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..figures import CONTEXT_MS, DECODE_MS, MEASURED_CONTEXT, PREFILL_TOKENS_PER_S, QUEUE_MS
from ..types import Hop, NodeInfo, Span
from .edges import Edges

UNMEASURED_DECODE_MS_PER_BLOCK = 5.0
"""Milliseconds assumed for a node that has not measured itself: slow enough that any measured one is
preferred."""
UNMEASURED_PREFILL_TOKENS_PER_S = 100.0
MOST_GROWTH = 10.0
"""1000 tokens of context are believed to add at most this many times the time of a short one. Measured: up to
half of it, where few experts compute; nobody shall excuse slowness with a context of some hundred tokens."""
CHUNKS_PER_HOP = 4
"""A prefill is cut into this many chunks for each hop of a route of several. A hop then idles for under a
fifth of the time. Where each chunk is computed in slices of 25 ms, they cost no more than larger ones (see
``scripts/bench``)."""
SMALLEST_CHUNK = 64
"""A chunk has at least this many tokens: below it kernels lose more than the overlap gains."""


@dataclass(frozen=True, slots=True)
class HopPrediction:
    """One hop, in seconds: ``queue_s`` and ``compute_s`` for a decoded token, ``prefill_s`` of compute for
    the whole prompt."""

    peer_id: str
    span: Span
    queue_s: float
    compute_s: float
    prefill_s: float

    def as_dict(self) -> dict[str, object]:
        return {
            "peer_id": self.peer_id,
            "blocks": str(self.span),
            "queue_ms": round(self.queue_s * 1000, 4),
            "compute_ms": round(self.compute_s * 1000, 4),
            "prefill_ms": round(self.prefill_s * 1000, 4),
        }


@dataclass(frozen=True, slots=True)
class EdgePrediction:
    """The link from ``source`` to ``target`` ("": the client): ``wire_s`` for a decoded token, one way.

    ``chained``: direct, not through the client. ``measured``: by some peer; else an estimate.
    """

    source: str
    target: str
    wire_s: float
    chained: bool
    measured: bool

    def as_dict(self) -> dict[str, object]:
        return {
            "from": self.source,
            "to": self.target,
            "wire_ms": round(self.wire_s * 1000, 4),
            "chained": self.chained,
            "measured": self.measured,
        }


@dataclass(frozen=True, slots=True)
class Prediction:
    """A route's cost before it is used. ``edges`` are one more than ``hops``: the link to the first, those
    between, the link back. ``prefill_s``: from the first chunk sent to the last token's row, hops working at
    the same time; of ``prompt_tokens``, in chunks."""

    hops: tuple[HopPrediction, ...]
    edges: tuple[EdgePrediction, ...]
    prefill_s: float
    prompt_tokens: int = 0

    @property
    def token_s(self) -> float:
        """Seconds for a decoded token."""
        return self.wire_s + sum(hop.queue_s + hop.compute_s for hop in self.hops)

    @property
    def wire_s(self) -> float:
        """The part of ``token_s`` that the links take."""
        return sum(edge.wire_s for edge in self.edges)

    def around(self, number: int) -> float:
        """Seconds of a decoded token at hop ``number`` and on the links to and from it."""
        hop = self.hops[number]
        return hop.queue_s + hop.compute_s + self.edges[number].wire_s + self.edges[number + 1].wire_s

    def as_dict(self) -> dict[str, object]:
        """For JSON, times in milliseconds."""
        return {
            "token_ms": round(self.token_s * 1000, 4),
            "prefill_ms": round(self.prefill_s * 1000, 4),
            "prompt_tokens": self.prompt_tokens,
            "hops": [hop.as_dict() for hop in self.hops],
            "edges": [edge.as_dict() for edge in self.edges],
        }


def queue_seconds(node: NodeInfo) -> float:
    """How long a step waits at the node before it is computed."""
    return QUEUE_MS.nearest(node.queue_ms) / 1000


def decode_seconds(node: NodeInfo, context: float = 0) -> float:
    """Seconds of one token for each block, with ``context`` tokens before it."""
    longer = max(0.0, context - MEASURED_CONTEXT) / 1000
    decode_ms = max(node.decode_ms_per_block or UNMEASURED_DECODE_MS_PER_BLOCK, DECODE_MS.low)
    growth_ms = min(CONTEXT_MS.nearest(node.context_ms_per_block), MOST_GROWTH * decode_ms)
    return (decode_ms + longer * growth_ms) / 1000


def prefill_seconds(node: NodeInfo) -> float:
    """Seconds of one token of a prompt for each block."""
    tokens_per_s = PREFILL_TOKENS_PER_S.nearest(node.prefill_tokens_per_s) or UNMEASURED_PREFILL_TOKENS_PER_S
    return 1 / (tokens_per_s * len(node.span))


def chunk_tokens(tokens: int, hops: int, max_step_tokens: int) -> int:
    """How many tokens a chunk of a prefill has: no more than every hop takes, and few enough that the hops
    overlap."""
    if hops == 1:
        return max(1, min(max_step_tokens, tokens))
    overlapping = -(-tokens // (CHUNKS_PER_HOP * hops))
    return max(1, min(max_step_tokens, max(SMALLEST_CHUNK, overlapping), tokens))


def predict(
    hops: Sequence[Hop],
    nodes: Sequence[NodeInfo],
    edges: Edges,
    *,
    prompt_tokens: int,
    bytes_at: Callable[[int], int],
    context: float = 0,
    before: str = "",
    after: str = "",
    max_step_tokens: int = 1 << 30,
) -> Prediction:
    """``nodes``: the hops' announcements, in their order. ``context``: tokens before a decoded one.
    ``before`` and ``after``: the peers that feed the first hop and take what the last gives, "" for the
    client, to which only one row of a prompt is sent. ``bytes_at``: of a token's activations at a boundary,
    one way, encoded."""
    peers = [before, *(hop.peer_id for hop in hops), after]
    sizes = [bytes_at(boundary) for boundary in (hops[0].span.start, *(hop.span.end for hop in hops))]
    links = [(a, b, size) for (a, b), size in zip(pairwise(peers), sizes, strict=True)]
    edge_predictions = tuple(
        EdgePrediction(a, b, edges.one_way_s(a, b, size), edges.may_chain(a, b), edges.is_measured(a, b))
        for a, b, size in links
    )
    hop_predictions = tuple(
        HopPrediction(
            hop.peer_id,
            hop.span,
            queue_seconds(node),
            len(hop.span) * decode_seconds(node, context),
            prompt_tokens * len(hop.span) * prefill_seconds(node),
        )
        for hop, node in zip(hops, nodes, strict=True)
    )
    prefill_s = 0.0
    if prompt_tokens:
        chunk = chunk_tokens(prompt_tokens, len(hops), max_step_tokens)
        # A pipeline: the first chunk passes all stages, the others follow as fast as the slowest stage lets.
        stages = [hop.prefill_s * chunk / prompt_tokens for hop in hop_predictions]
        fill = sum(stages) + sum(hop.queue_s for hop in hop_predictions)
        for number, (a, b, size) in enumerate(links):
            last = number == len(hops) and not b
            fill += edges.one_way_s(a, b, size * (1 if last else chunk))
            if not last:
                stages += _transfers(a, b, edges, size * chunk)
        prefill_s = fill + (prompt_tokens / chunk - 1) * max(stages)
    return Prediction(hop_predictions, edge_predictions, prefill_s, prompt_tokens)


def _transfers(a: str, b: str, edges: Edges, payload_bytes: int) -> list[float]:
    """Seconds that a payload keeps each line busy on the link from ``a`` to ``b``."""
    if a and b and not edges.may_chain(a, b):
        return _transfers(a, "", edges, payload_bytes) + _transfers("", b, edges, payload_bytes)
    return [edges.one_way_s(a, b, payload_bytes) - edges.one_way_s(a, b, 0)]
