from __future__ import annotations

from swarm_node.swarm.fairness.buckets import Bucket, Buckets


def test_bucket() -> None:
    bucket = Bucket(rate=2, most=10, now=0)
    assert bucket.take(10, 0) == 0
    assert bucket.take(4, 0) == 2
    assert bucket.take(4, 2) == 0
    assert bucket.take(20, 7) == 0  # more than it ever holds: all that it has
    assert bucket.wait_s(1, 7) == 5.5


def test_a_bucket_for_each_name_and_those_that_asked_longest_ago_begin_anew() -> None:
    buckets = Buckets(rate=1, most=2, max_names=2)
    for name in ("a", "b"):
        assert buckets.of(name, 0.0).take(2, 0.0) == 0
        assert buckets.of(name, 0.0).take(1, 0.0) == 1
    assert buckets.of("a", 0.0).take(1, 0.0) == 1
    assert buckets.of("c", 0.0).take(1, 0.0) == 0  # and "b" is forgotten
    assert len(buckets) == 2
    assert buckets.of("a", 0.0).take(1, 0.0) == 1
    assert buckets.of("b", 0.0).take(1, 0.0) == 0
