"""What a measured figure can physically be: the least and the most that a peer may claim, each with a reason.

A figure of a peer is a claim. A record or message with a figure outside its bounds is refused; a figure that
this process measured itself is brought inside before it is told. Code that computes with a figure takes it
through ``nearest``, so that no time or rate made of it is infinite, and none is 0 where something is divided
by it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure is 0 (not measured, or none), or a number from ``low`` to ``high``."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a peer may claim it. False for NaN."""
        return value == 0 or self.low <= value <= self.high

    def nearest(self, value: float) -> float:
        """The figure nearest to ``value``; 0 for what is not above 0, and for NaN."""
        if not value > 0:
            return 0.0
        return min(max(value, self.low), self.high)

    def __str__(self) -> str:
        return f"0 or a number from {self.low:g} to {self.high:g}" if self.low > 0 else f"0 to {self.high:g}"


DECODE_MS = Figure(0.001, 600_000)
"""Milliseconds of one decoded token in one block. A microsecond is less than any accelerator needs to start
its kernels, and a node that takes ten minutes is of no use."""
MEASURED_CONTEXT = 256
"""Tokens before the one with which DECODE_MS is measured: what attention then reads is little beside the
weights."""
CONTEXT_MS = Figure(0, 600_000)
"""Milliseconds that each 1000 tokens of context add to a decoded token in one block."""
PREFILL_TOKENS_PER_S = Figure(0.001, 1e8)
"""Tokens of a prompt per second through a span: from one in a quarter of an hour to a hundred times what the
largest accelerators do with the smallest models."""
QUEUE_MS = Figure(0, 60_000)
"""Milliseconds that a step waits before it is computed. A longer queue is not known more exactly."""
TOKENS_PER_S = Figure(0, 1e8)
"""Tokens per second that all sessions of a node together get."""
BYTES_PER_S = Figure(100, 1e12)
"""Bytes per second of a line, from a slow modem to ten times the fastest port."""
MAX_LINE_BYTES_PER_S = 10**12
"""Bytes per second that a line may be limited to by a person; 0 is no limit."""
MAX_RTT_US = 60_000_000
"""Microseconds of a round trip: every deadline is over before that minute."""
MAX_STEP_US = 3_600_000_000
"""Microseconds that a part of a step may take: an hour, the longest deadline of a step."""
MAX_KV_TOKENS = 2**40
"""Tokens of KV cache at most: with a byte a token this would be a terabyte."""
MAX_JOURNAL_BYTES = 2**50
MAX_SESSIONS = 1_000_000
"""Sessions, or steps that wait, at one node at most."""
UNIX_TIME = Figure(0, 253_402_300_799)
"""Seconds of Unix time, until the year 9999, the last that can be shown."""

MOST_AHEAD = 128
"""A session has at most this many tokens under way whose rows it has not seen: a hop can go back by as many,
from anywhere."""
MOST_AHEAD_OF_STATES = 64
"""The same of a model whose blocks keep states: each page further back takes another state of every block."""
