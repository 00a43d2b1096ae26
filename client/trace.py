"""Where the time of a generation went: per hop queue, compute, codec and wire; and on this side."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..swarm.types import Span


@dataclass(slots=True)
class Phase:
    """Sums over the steps of a prefill or of decoding at one hop. Times in seconds.

    ``queue_s`` and ``compute_s`` are the node's own measurements. ``codec_s`` is encoding and decoding on
    both sides. ``wire_s`` is the rest of the time between sending a step and having its result: the
    network, and event loops that were busy. In a prefill hops work at the same time, so their times
    overlap.
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

    def as_dict(self) -> dict[str, object]:
        """Totals for JSON, times in milliseconds."""
        times = {
            name.replace("_s", "_ms"): round(getattr(self, name) * 1000, 4)
            for name in ("queue_s", "compute_s", "codec_s", "wire_s")
        }
        counts = {name: getattr(self, name) for name in ("steps", "tokens", "bytes_sent", "bytes_received")}
        return {**counts, **times}


@dataclass(slots=True)
class HopTrace:
    """What one hop's session has cost so far; the session writes it."""

    peer_id: str
    span: Span
    codec: str
    prefill: Phase = field(default_factory=Phase)
    decode: Phase = field(default_factory=Phase)

    def timings(self) -> HopTimings:
        return HopTimings(self.peer_id, self.span, self.codec, replace(self.prefill), replace(self.decode))


@dataclass(frozen=True, slots=True)
class HopTimings:
    """One hop of a route and what it cost. ``codec`` is how activations travelled to and from it."""

    peer_id: str
    span: Span
    codec: str
    prefill: Phase
    decode: Phase

    @property
    def ms_per_token(self) -> float:
        """Milliseconds a decoded token spent at this hop and on the way; of a prompt token if none was
        decoded."""
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
            "blocks": str(self.span),
            "codec": self.codec,
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
