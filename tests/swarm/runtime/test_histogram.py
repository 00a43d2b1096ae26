from __future__ import annotations

from swarm_node.swarm.runtime.histogram import Histogram


def test_values_are_in_the_bucket_whose_upper_end_they_do_not_exceed():
    histogram = Histogram((1, 2, 4))
    for value in (0, 1, 1.5, 2, 3, 5, 100):
        histogram.add(value)
    totals = histogram.totals()
    assert totals.counts == (2, 2, 1, 2)
    assert (totals.count, totals.total) == (7, 112.5)


def test_totals_are_of_their_moment():
    histogram = Histogram((1,))
    before = histogram.totals()
    histogram.add(0.5)
    assert (before.count, histogram.totals().count) == (0, 1)
