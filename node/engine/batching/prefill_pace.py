"""How many prompt tokens fit beside decoding sessions without making them wait much. Plain ints, no clock."""

from __future__ import annotations

from collections import deque

from ....swarm.errors import UsageError

MIN_SLICE = 16
"""Prompt tokens. Smaller slices cost more in reads of the weights than they spare the others."""
FIRST_SLICE = 64
"""Prompt tokens beside decode before anything was measured."""
MEASURABLE = 8
"""Prompt tokens below which a batch's time says nothing about the cost of one."""
WINDOW = 9
"""The median of this many measurements counts: four in a row may be spoilt by other work of the machine."""
COLD = 2
"""Decode batches whose times count only together, by the smallest: the first one of all is the slowest."""
_FRACTION = 1024
"""Costs are kept in 1/1024 µs a token, as ints."""


class PrefillPace:
    """Learns the cost of a prompt token from whole batches; sizes slices to ``target_us`` of extra time."""

    def __init__(self, target_us: int) -> None:
        if target_us < 1:
            raise UsageError(f"a prefill slice of {target_us} µs is not possible")
        self._target_us = target_us
        self._costs: deque[int] = deque(maxlen=WINDOW)
        self._estimate = 0  # median of the costs; 0: before the first
        # Time of a batch of decode alone, by the bit length of its rows; 0: not seen yet.
        self._decode_us = [0] * 16
        self._decode_seen = [0] * 16

    def observe(self, prefill_tokens: int, decode_rows: int, elapsed_us: int) -> None:
        """A batch of ``prefill_tokens`` and ``decode_rows`` took ``elapsed_us``."""
        if elapsed_us < 1 or prefill_tokens < 0 or decode_rows < 0:
            return
        bucket = min(decode_rows.bit_length(), len(self._decode_us) - 1)
        known = self._decode_us[bucket]
        if not prefill_tokens:
            self._decode_seen[bucket] += 1
            if self._decode_seen[bucket] <= COLD:
                self._decode_us[bucket] = min(elapsed_us, known or elapsed_us)
            else:  # down fast, up slowly: a spoilt batch is always a slow one
                off = elapsed_us - known
                self._decode_us[bucket] = known + (min(off, known // 16 + 1) if off > 0 else off // 4)
        elif prefill_tokens >= MEASURABLE:
            self._decode_us[bucket] = min(known, elapsed_us)
            extra_us = max(elapsed_us - self._decode_alone(bucket), elapsed_us // 8, 1)
            self._costs.append(max(1, extra_us * _FRACTION // prefill_tokens))
            self._estimate = sorted(self._costs)[len(self._costs) // 2]

    def slice_tokens(self, at_most: int) -> int:
        """Prompt tokens for a batch with decode in it: at least MIN_SLICE, but never above ``at_most``."""
        wanted = self._target_us * _FRACTION // self._estimate if self._estimate else FIRST_SLICE
        return max(1, min(max(MIN_SLICE, wanted), at_most))

    def _decode_alone(self, bucket: int) -> int:
        """µs of the nearest known decode batch that is not larger, else 0: better too small a slice."""
        if bucket:
            for smaller in range(bucket, 0, -1):
                if self._decode_seen[smaller] >= COLD:
                    return self._decode_us[smaller]
        return 0
