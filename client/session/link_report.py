"""What a session's steps say of the links: they measure them better than openings and PINGs did."""

from __future__ import annotations

from collections.abc import Iterable

from ..hops.segment import Segment
from ..routing.link_table import transfer_rate
from ..routing.router import Router

STEPS_TO_MEASURE = 8
"""Decode steps whose mean says something about the ways of a chain."""


def report_links(router: Router, segments: Iterable[Segment]) -> None:
    """A way, where one hop answers alone; of a chain the sum of its ways, and PINGs the rest."""
    for segment in segments:
        decode, prefill = segment.trace.decode, segment.trace.prefill
        if segment.is_chain:
            for hop in segment.hops:
                router.measured(hop.peer_id, hop.link.round_trip_s)
            if decode.steps >= STEPS_TO_MEASURE:
                router.chain_measured(segment.trace.peer_ids, decode.wire_s / decode.steps)
        elif decode.steps:
            if decode.tokens >= STEPS_TO_MEASURE:
                hop = segment.first
                step_s, tokens = hop.trace.decode.seconds / decode.steps, decode.tokens / decode.steps
                router.worked(hop.peer_id, len(hop.hop.span), step_s, tokens)
            rtt_s = decode.wire_s / decode.steps
            rate = transfer_rate(prefill.bytes_sent, prefill.wire_s, rtt_s) if prefill.steps == 1 else None
            router.measured(segment.first.peer_id, rtt_s, bytes_per_s=rate)
