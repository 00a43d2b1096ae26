"""How many of a node's threads compute: all where it has the cores to itself, fewer where it shares them.

A thread that has work but no core stands in the system's run queue, and the other threads of its job wait for
what it took. So a node whose threads stand there for long computes with fewer, and now and then tries whether
more would get their cores again. A trial that fails doubles the time until the next.

No thread and no clock: ``computed`` is told of each batch, and ``delay_ns`` is a reading.
"""

from __future__ import annotations

from collections.abc import Callable

WINDOW_NS = 50_000_000
"""Nanoseconds of computing between two judgements: some time slices of a scheduler under load."""
CROWDED = 0.15
"""Threads that wait for a core for this part of the time are too many."""
FREE = 0.05
"""Below this part, one thread more may find a core."""
FIRST_TRIAL_NS = 100_000_000
LAST_TRIAL_NS = 6_400_000_000
"""Nanoseconds from narrowing, or from a trial that failed, to the next trial: the least and the most."""
PAUSE_NS = 250_000_000
"""Who computed nothing for this long knows nothing of its neighbours any more, and tries soon."""


class ThreadWidth:
    """``width``: of ``most`` threads, how many compute. ``delay_ns()``: nanoseconds for which these threads
    have stood in the run queue until now, all together; None where the system does not tell it: then the time
    that the calling thread was off its core stands for all."""

    def __init__(self, most: int, delay_ns: Callable[[], int] | None = None) -> None:
        self.most = most
        self.width = most
        self._read = delay_ns
        self._delay_ns = delay_ns() if delay_ns is not None else 0
        self._busy_ns = 0  # in this window
        self._off_ns = 0  # of it, off the core
        self._ended_ns = 0
        self._trial_ns = FIRST_TRIAL_NS
        self._next_trial = 0
        self._before = 0  # the width before the trial that runs; 0: none

    def computed(self, began_ns: int, ended_ns: int, on_core_ns: int) -> int:
        """A batch was computed, for ``on_core_ns`` of the calling thread's processor time; the width for the
        next."""
        if began_ns - self._ended_ns > PAUSE_NS:
            self._forget(began_ns)
        self._ended_ns = ended_ns
        self._busy_ns += ended_ns - began_ns
        self._off_ns += ended_ns - began_ns - on_core_ns
        if self._busy_ns >= WINDOW_NS:
            self._judge(self._take_delay() / self._busy_ns, ended_ns)
            self._busy_ns = self._off_ns = 0
        return self.width

    def _forget(self, now_ns: int) -> None:
        """Begin a window anew, without what the threads waited for meanwhile."""
        self._take_delay()
        self._busy_ns = self._off_ns = 0
        self._trial_ns = FIRST_TRIAL_NS
        self._next_trial = min(self._next_trial, now_ns)

    def _take_delay(self) -> int:
        """Nanoseconds of delay since the last call, of all threads together."""
        if self._read is None:
            return self._off_ns * self.width
        before, self._delay_ns = self._delay_ns, self._read()
        return self._delay_ns - before

    def _judge(self, waiting: float, now_ns: int) -> None:
        """``waiting``: threads that stood in the run queue, on the average."""
        share, trial = waiting / self.width, self._before
        self._before = 0
        if share > CROWDED and self.width > 1:
            if trial:
                self._trial_ns = min(2 * self._trial_ns, LAST_TRIAL_NS)
            self.width = trial or max(1, min(self.width - 1, round(self.width - waiting)))
            self._next_trial = now_ns + self._trial_ns
            return
        if trial:
            self._trial_ns = FIRST_TRIAL_NS
        if share < FREE and self.width < self.most and now_ns >= self._next_trial:
            self._before = self.width
            self.width = min(self.most, self.width + max(1, self.width // 2))
