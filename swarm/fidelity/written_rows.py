"""What a table of scales does to rows, as their writer sees it, who has the exact ones: it need not believe
whoever made the table, nor how many say that it is good."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..codecs.codec import Codec
from .error_watch import HARMFUL_ERROR, LARGEST_ERROR, LEAST_ROWS, Tally
from .row_error import exact_errors
from .row_sampler import EVERY, is_sampled


@dataclass(slots=True)
class WrittenRows:
    """The rows of one session at one edge, of which the ``first`` are looked at, and one of EVERY after. Rows
    of other codecs than those with scales are not."""

    first: int = LEAST_ROWS
    _seen: Tally = field(default_factory=Tally)

    def wants(self, codec: Codec, position: int, tokens: int) -> bool:
        """Whether any of ``tokens`` rows, the first at ``position``, is to be looked at."""
        return bool(codec.exponents) and (self._seen.rows < self.first or is_sampled(position, tokens))

    def harmed(self, codec: Codec, rows: np.ndarray, position: int, least: int = LEAST_ROWS) -> bool:
        """Whether ``codec`` loses more than LARGEST_ERROR of the rows, in the mean of at least ``least``, or
        more than HARMFUL_ERROR of fewer.

        ``rows`` (tokens, width) float32, exact, the first at ``position``. The error is relative to a whole
        row, as the writer need not know with which weights it is read. With honest scales of two families its
        mean was up to 0.9 % at any boundary, and 2.6 % for a single row."""
        if not self.wants(codec, position, len(rows)):
            return False
        first = range(min(len(rows), max(0, self.first - int(self._seen.rows))))
        chosen = sorted({*first, *range(-position % EVERY, len(rows), EVERY)})
        exact = np.ascontiguousarray(rows[chosen])
        coded = codec.decode(codec.encode(exact), *exact.shape)
        self._seen.add(exact_errors(exact, coded, np.ones(exact.shape[1])))
        return self._seen.mean > (LARGEST_ERROR if self._seen.rows >= least else HARMFUL_ERROR)
