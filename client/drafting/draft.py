"""What a draft is: tokens that probably come next, in one chain.

A chain, not a tree: a hop's KV cache and journal are lines of positions, and a rolled back line is all that a
repair has to know. What a tree adds is the second guess at each place; with a round trip that is long against
a token's compute, the same rows are better spent on a longer chain.
"""

from __future__ import annotations

from dataclasses import dataclass

from .draft_length import Kind


@dataclass(frozen=True, slots=True)
class Draft:
    """``tokens``, the ``kinds`` that their chances are measured by, and first guesses of them, ``priors``."""

    tokens: tuple[int, ...]
    kinds: tuple[Kind, ...]
    priors: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, length: int) -> Draft:
        return Draft(self.tokens[:length], self.kinds[:length], self.priors[:length])

    def before(self, stop_ids: frozenset[int]) -> Draft:
        """The part before the first of ``stop_ids``: nothing that comes after it would be used."""
        ends = (number for number, token in enumerate(self.tokens) if token in stop_ids)
        return self.first(next(ends, len(self)))


NO_DRAFT = Draft((), (), ())
