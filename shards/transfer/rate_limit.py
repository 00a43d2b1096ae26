"""A bound on bytes a second. Pure: every call brings ``now`` in seconds."""

from __future__ import annotations

from ...swarm.errors import UsageError

BURST_S = 0.25
"""What was not used in this many seconds may be used at once."""


class RateLimit:
    """``bytes_per_s`` None: no bound."""

    def __init__(self, bytes_per_s: float | None = None) -> None:
        if bytes_per_s is not None and not bytes_per_s > 0:
            raise UsageError(f"a bandwidth of {bytes_per_s} bytes a second moves nothing")
        self.bytes_per_s = bytes_per_s
        self._free_at = 0.0

    def delay(self, n_bytes: int, now: float) -> float:
        """Count ``n_bytes``; how many seconds to wait before they may go."""
        if self.bytes_per_s is None:
            return 0.0
        begin = max(self._free_at, now - BURST_S)
        self._free_at = begin + n_bytes / self.bytes_per_s
        return max(0.0, begin - now)
