"""Bans double, end, are forgiven by success, and stay bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.peer_health import PeerHealth


def make() -> PeerHealth:
    return PeerHealth(first_ban_s=1.0, longest_ban_s=8.0, forget_after_s=100.0, max_peers=3)


def test_bans_double_up_to_the_longest() -> None:
    health = make()
    now, bans = 0.0, []
    for _ in range(6):
        until = health.failed("a", now, "stream closed")
        bans.append(until - now)
        now = until
    assert bans == [1, 2, 4, 8, 8, 8]
    assert health.statistics()["a"].failures == 6
    assert health.statistics()["a"].reason == "stream closed"


def test_a_ban_ends_by_itself() -> None:
    health = make()
    health.failed("a", 10.0)
    assert health.is_banned("a", 10.0)
    assert health.banned(10.9) == frozenset({"a"})
    assert not health.is_banned("a", 11.0)
    assert health.banned(11.0) == frozenset()


def test_success_forgives_everything() -> None:
    health = make()
    for _ in range(4):
        health.failed("a", 0.0)
    health.succeeded("a")
    health.succeeded("never seen")
    assert not health.is_banned("a", 0.0)
    assert health.failed("a", 0.0) == 1.0  # the count starts afresh


def test_a_release_ends_the_ban_but_not_the_row_of_failures() -> None:
    health = make()
    health.failed("a", 0.0)
    health.failed("a", 0.5)
    health.release("a", 1.0)
    health.release("b", 1.0)
    assert not health.is_banned("a", 1.0)
    assert health.failed("a", 1.0) == 5.0  # the third in a row


def test_a_quiet_peer_starts_afresh() -> None:
    health = make()
    for _ in range(4):
        health.failed("a", 0.0)
    assert health.failed("a", 1000.0) == 1001.0


def test_failing_while_banned_never_shortens_the_ban() -> None:
    health = make()
    assert health.ban("a", 0.0, 50.0, "lied") == 50.0
    assert health.failed("a", 1.0) == 50.0
    assert health.ban("a", 1.0, 2.0) == 50.0


def test_next_release_is_the_first_ban_to_end() -> None:
    health = make()
    assert health.next_release(0.0) is None
    health.ban("a", 0.0, 5.0)
    health.ban("b", 0.0, 3.0)
    assert health.next_release(0.0) == 3.0
    assert health.next_release(3.0) == 5.0
    assert health.next_release(5.0) is None


def test_memory_is_bounded_and_keeps_the_newest_and_longest() -> None:
    health = make()
    for i, seconds in enumerate([50.0, 10.0, 30.0]):
        health.ban(f"peer{i}", 0.0, seconds)
    health.failed("new", 0.0)  # the shortest ban of all, but the newest
    assert set(health.statistics()) == {"peer0", "peer2", "new"}


@pytest.mark.parametrize(
    "options", [{"first_ban_s": 0.0}, {"first_ban_s": 9.0, "longest_ban_s": 8.0}, {"max_peers": 0}]
)
def test_senseless_limits(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        PeerHealth(**options)  # type: ignore[arg-type]


def test_a_ban_needs_a_length() -> None:
    with pytest.raises(UsageError):
        make().ban("a", 0.0, float("nan"))


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.booleans(), st.floats(0, 50)), max_size=40))
def test_bans_never_exceed_the_longest_and_agree_with_each_other(
    events: list[tuple[str, bool, float]],
) -> None:
    health, now = make(), 0.0
    for peer, ok, pause in events:
        now += pause
        if ok:
            health.succeeded(peer)
            assert not health.is_banned(peer, now)
        else:
            assert now < health.failed(peer, now) <= now + 8.0
        assert health.banned(now) == {p for p in "abcde" if health.is_banned(p, now)}
        assert len(health.statistics()) <= 3
