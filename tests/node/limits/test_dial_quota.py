from __future__ import annotations

from swarm_node.node.limits.dial_quota import DialQuota
from swarm_node.node.limits.quotas import Limits
from swarm_node.swarm.fairness.shares import Holder

ONE = Holder("one", "net")


def test_dials_are_limited_at_once_and_by_the_minute():
    quota = DialQuota(Limits(dials_per_peer=2, dials_per_minute_per_peer=3))
    assert [quota.begin(ONE, now) for now in (0.0, 1.0)] == ["", ""]
    assert "under way" in quota.begin(ONE, 2.0)
    quota.end(ONE)
    assert quota.begin(ONE, 30.0) == ""
    quota.end(ONE)
    assert "a minute" in quota.begin(ONE, 59.0)
    assert quota.begin(ONE, 60.0) == ""  # the first was a minute ago


def test_identities_of_one_network_share_its_dials_of_a_minute():
    quota = DialQuota(Limits(dials_per_minute_per_group=5))
    for number in range(5):
        holder = Holder(f"sybil{number}", "net")
        assert quota.begin(holder, 0.0) == ""
        quota.end(holder)
    assert "one network" in quota.begin(ONE, 1.0)
    assert quota.begin(Holder("me", "elsewhere"), 1.0) == ""


def test_when_all_are_taken_the_greediest_network_gives_one_up():
    quota = DialQuota(Limits(dials=6))
    crowd = [Holder(f"sybil{number}", "net") for number in range(6)]
    for holder in crowd:
        assert quota.loser(holder, 0.0) is None
        assert quota.begin(holder, 0.0) == ""
    me = Holder("me", "elsewhere")
    assert quota.begin(me, 0.0) == "6 dials are under way"
    loser = quota.loser(me, 0.0)
    assert loser in crowd
    quota.end(loser)
    assert quota.begin(me, 0.0) == ""
    stingy = DialQuota(Limits(dials=1, dials_per_minute_per_peer=1))
    assert stingy.begin(me, 0.0) == ""
    stingy.end(me)
    assert stingy.begin(crowd[0], 0.0) == ""
    assert stingy.loser(me, 0.0) is None  # it would get no dial, so nobody loses one
