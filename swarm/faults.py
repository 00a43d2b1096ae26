"""When our own code fails over what a peer has said: the peer is left out, and the failure is not hidden.

Bounds at the doors (``figures``, ``fields``) should make this impossible. Where it happens all the same it is
a fault of ours. Then one peer's data must not end a loop, a process or the requests of others: the fault is
logged with its traceback and counted, and the work goes on without that peer.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from .errors import LocalProtocolError, SwarmError, UsageError

MAX_TRIES = 64
"""At most this many subsets are tried to find the peer over whose words a piece of work fails: enough for one
peer in a thousand, and few enough not to hold up the process for long."""
MAX_TOLD = 256
"""The tracebacks of this many different faults are logged. Later faults, and those that come again, get one
line."""

Record = TypeVar("Record")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class Faults:
    """Faults of one piece of work, which ``where`` names in a word or two. ``count``: how many there were."""

    def __init__(self, where: str) -> None:
        self.count = 0
        self._where = where
        self._told: Counter[tuple[str, str]] = Counter()

    def note(self, fault: BaseException, peer_id: str = "") -> None:
        """Log it: with its traceback where it is new. ``peer_id``: whose words it came from, if known."""
        self.count += 1
        kind = repr(fault)[:200], peer_id
        new = kind not in self._told and len(self._told) < MAX_TOLD
        if new or kind in self._told:
            self._told[kind] += 1
        logger.error(
            "event=fault where=%r peer=%s count=%d error=%.200r",
            self._where,
            peer_id,
            self.count,
            fault,
            exc_info=fault if new else None,
        )

    @contextmanager
    def survived(self) -> Iterator[None]:
        """Errors inside are noted and not raised, so that a loop around it goes on. Use it for work that may
        be left out once: the loop must pause before it tries again."""
        try:
            yield
        except Exception as fault:  # noqa: BLE001 - told with its traceback
            self.note(fault)

    def without_culprits(
        self,
        work: Callable[[Sequence[Record]], Result],
        records: Sequence[Record],
        peer_of: Callable[[Record], str],
    ) -> Result:
        """``work`` on all ``records`` or, where it fails unexpectedly, on those that it does not fail over.

        An answer, such as that there is no route, is not a failure: it is raised. So is the failure itself if
        no part of the records is found with which the work does not fail.
        """
        try:
            return work(records)
        except Exception as fault:
            if is_answer(fault):
                raise
            kept = _Sieve(work).sound(records)
            if len(kept) == len(records):
                raise
            left_out = {id(record) for record in records} - {id(record) for record in kept}
            for record in records:
                if id(record) in left_out:
                    self.note(fault, peer_of(record))
            return work(kept)


def is_answer(error: Exception) -> bool:
    """Whether an error says something of the swarm. One that says that we have called or sent something wrong
    says nothing but that we are wrong."""
    return isinstance(error, SwarmError) and not isinstance(error, UsageError | LocalProtocolError)


class _Sieve(Generic[Record]):
    """Finds records that some work does not fail over, by halves."""

    def __init__(self, work: Callable[[Sequence[Record]], object]) -> None:
        self._work = work
        self._tries = 0

    def sound(self, records: Sequence[Record]) -> list[Record]:
        """Of ``records``, which the work fails over, those that it does not fail over together."""
        if len(records) <= 1:
            return []
        middle = len(records) // 2
        parts = [
            list(half) if self._does(half) else self.sound(half)
            for half in (records[:middle], records[middle:])
        ]
        both = [*parts[0], *parts[1]]
        return both if self._does(both) else max(parts, key=len)

    def _does(self, records: Sequence[Record]) -> bool:
        self._tries += 1
        if self._tries > MAX_TRIES:
            return False
        try:
            self._work(records)
        except Exception as fault:  # noqa: BLE001 - the first is told
            return is_answer(fault)
        return True
