"""The boundaries of a model's blocks: what is handed over there, and where hops may begin and end.

Boundary b is before block b; the last one is after the last block. ``cuts``: the boundaries at which a model
may be cut, ascending, the first and the last among them; none at all stands for every boundary.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from .types import Span


def is_cut(boundary: int, cuts: Sequence[int]) -> bool:
    return not cuts or boundary in cuts


def may_serve(span: Span, cuts: Sequence[int]) -> bool:
    """Whether a hop may have exactly the blocks ``span``."""
    return is_cut(span.start, cuts) and is_cut(span.end, cuts)


def span_around(span: Span, cuts: Sequence[int]) -> Span:
    """The smallest span between cuts that has all of ``span``, which ends within the model."""
    if not cuts:
        return span
    return Span(cuts[bisect_right(cuts, span.start) - 1], cuts[bisect_left(cuts, span.end)])


def span_inside(span: Span, cuts: Sequence[int]) -> Span | None:
    """The largest span between cuts within ``span``; None where there is none."""
    if not cuts:
        return span
    first, last = bisect_left(cuts, span.start), bisect_right(cuts, span.end) - 1
    return Span(cuts[first], cuts[last]) if first < last else None


@dataclass(frozen=True, slots=True)
class Boundaries:
    """``widths``: values of the row of a token, at each boundary. A row begins with the residual stream,
    which is all of it after the last block; then comes what each block from there on reads beside it."""

    widths: tuple[int, ...]
    cuts: tuple[int, ...] = ()

    @classmethod
    def alike(cls, n_blocks: int, width: int) -> Boundaries:
        """Of a model that may be cut anywhere."""
        return cls((width,) * (n_blocks + 1))

    @property
    def residual_width(self) -> int:
        return self.widths[-1]

    def sizes(self, row_bytes: Callable[[int], int]) -> tuple[int, tuple[int, ...]]:
        """Bytes of a row between two hops, in the mean of the places where a model may be cut; and at each
        boundary, where these differ. ``row_bytes``: of a row by its width."""
        each = tuple(map(row_bytes, self.widths))
        inside = [size for boundary, size in enumerate(each[1:-1], 1) if is_cut(boundary, self.cuts)]
        return round(fmean(inside or each)), () if len(set(each)) == 1 else each
