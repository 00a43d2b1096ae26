"""The least time that a token can take over a wide-area route: what the machines compute, and physics.

A route of N hops that hand activations on to each other has N + 1 ways (client, hops, client); one whose hops
all answer to the client has 2 N. Each way costs half a round trip and its bytes over the bandwidth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Condition:
    """Links between all machines alike; ``rate`` is of each machine's access, in bit/s each way."""

    name: str
    rate: float
    rtt_s: float


PETALS_CONDITIONS = (
    Condition("1 Gbit/s, 5 ms", 1e9, 0.005),
    Condition("100 Mbit/s, 5 ms", 1e8, 0.005),
    Condition("100 Mbit/s, 100 ms", 1e8, 0.1),
)
"""Of the Petals paper (arXiv 2209.01188, table 3; 2312.08361, table 2): bandwidth and round trip."""


def ways(hops: int, *, chain: bool) -> int:
    """How often an activation travels between two machines for a token."""
    return hops + 1 if chain else 2 * hops


@dataclass(frozen=True, slots=True)
class DecodeBound:
    """Seconds of one token, in parts."""

    compute_s: float
    local_s: float
    trips_s: float
    wire_s: float

    @property
    def seconds(self) -> float:
        return self.compute_s + self.local_s + self.trips_s + self.wire_s

    def as_dict(self) -> dict[str, float]:
        return {**asdict(self), "seconds": self.seconds}


def decode_bound(
    condition: Condition, *, chain: bool, compute_s: Sequence[float], local_s: float, row_bytes: int
) -> DecodeBound:
    """``compute_s``: of each hop, as it measured itself; ``local_s``: the client's embedding, head and
    choice; ``row_bytes``: one token's activations as encoded."""
    count = ways(len(compute_s), chain=chain)
    return DecodeBound(
        compute_s=sum(compute_s),
        local_s=local_s,
        trips_s=count * condition.rtt_s / 2,
        wire_s=count * row_bytes * 8 / condition.rate,
    )


def prefill_bound(
    condition: Condition, *, hops: int, chain: bool, tokens: int, row_bytes: int, compute_s: float, cores: int
) -> float:
    """Seconds of a prompt whose parts are everywhere at work at the same time.

    ``compute_s``: all blocks for all tokens on one core. It can be shared by as many cores as there are, and
    goes on while other parts travel; so the slowest of computing and of the busiest access counts, then the
    ways of the first part. Of a relayed route the client's access is the busiest: it sends the prompt to
    every hop, and takes back what all of them but the last one answer. TCP that must first find out how fast
    a link is needs longer than this.
    """
    sendings = 1 if chain else hops
    busiest = sendings * tokens * row_bytes * 8 / condition.rate
    return max(compute_s / min(cores, hops), busiest) + ways(hops, chain=chain) * condition.rtt_s / 2
