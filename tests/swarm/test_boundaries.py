"""Spans and the boundaries at which a model may be cut."""

from __future__ import annotations

import pytest

from swarm_node.swarm.boundaries import Boundaries, is_cut, may_serve, span_around, span_inside
from swarm_node.swarm.types import Span

CUTS = (0, 1, 4, 6)
SPANS = [Span(start, end) for start in range(6) for end in range(start + 1, 7)]


@pytest.mark.parametrize("span", SPANS, ids=str)
def test_without_cuts_every_span_may_be_served(span: Span) -> None:
    assert may_serve(span, ())
    assert span_around(span, ()) == span_inside(span, ()) == span


@pytest.mark.parametrize("span", SPANS, ids=str)
def test_the_nearest_spans(span: Span) -> None:
    allowed = [each for each in SPANS if is_cut(each.start, CUTS) and is_cut(each.end, CUTS)]
    assert may_serve(span, CUTS) == (span in allowed)
    assert span_around(span, CUTS) == min((each for each in allowed if each.covers(span)), key=len)
    assert span_inside(span, CUTS) == max(
        (each for each in allowed if span.covers(each)), key=len, default=None
    )


def test_rows_of_one_width() -> None:
    assert Boundaries.alike(2, 8) == Boundaries((8, 8, 8))
