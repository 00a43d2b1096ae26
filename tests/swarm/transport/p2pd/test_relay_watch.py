"""When a peer behind relays needs a new daemon."""

from __future__ import annotations

from pathlib import Path

from swarm_node.swarm.identity import Identity
from swarm_node.swarm.transport.p2pd.options import P2pdOptions
from swarm_node.swarm.transport.p2pd.relay_watch import GRACE_S, RETRY_S, RelayState, RelayWatch

KEY = Identity.generate()
ONE, OTHER, STRANGER = b"one", b"other", b"stranger"


def test_a_relay_that_stays_connected_is_fine_and_a_start_has_time_for_it() -> None:
    watch = RelayWatch([ONE, OTHER])
    assert watch.look([], 0.0) is RelayState.FINE
    for second in range(10):
        assert watch.look([ONE, STRANGER], GRACE_S + second) is RelayState.FINE


def test_a_lost_relay_is_tried_now_and_then_and_needs_a_new_daemon_when_it_is_back() -> None:
    watch = RelayWatch([ONE])
    now = GRACE_S
    assert watch.look([ONE], now) is RelayState.FINE
    assert watch.look([STRANGER], now + 1) is RelayState.LOST
    assert watch.look([STRANGER], now + 2) is RelayState.FINE
    assert watch.look([STRANGER], now + 1 + RETRY_S) is RelayState.LOST
    assert watch.look([ONE], now + 2 + RETRY_S) is RelayState.BACK
    watch.began(now + 3 + RETRY_S)
    assert watch.look([ONE], now + 4 + RETRY_S) is RelayState.FINE


def test_a_relay_that_goes_and_comes_while_a_daemon_starts_has_forgotten_us() -> None:
    watch = RelayWatch([ONE])
    assert watch.look([], 0.0) is RelayState.FINE
    assert watch.look([ONE], 1.0) is RelayState.FINE
    assert watch.look([STRANGER], 2.0) is RelayState.LOST
    assert watch.look([ONE], 3.0) is RelayState.BACK


def test_a_relay_that_was_away_between_two_looks_has_forgotten_us() -> None:
    watch = RelayWatch([ONE])
    assert watch.look([ONE], 1.0) is RelayState.FINE
    watch.ended(ONE)
    assert watch.look([ONE], 2.0) is RelayState.BACK
    watch.began(3.0)
    assert watch.look([ONE], 4.0) is RelayState.FINE


def test_a_relay_that_is_met_too_late_holds_no_place() -> None:
    watch = RelayWatch([ONE, OTHER])
    assert watch.look([OTHER], GRACE_S - 1) is RelayState.FINE
    assert watch.look([ONE, OTHER], GRACE_S - 0.5) is RelayState.FINE
    watch.began(0.0)
    assert watch.look([OTHER], GRACE_S) is RelayState.FINE
    assert watch.look([ONE], GRACE_S + 1) is RelayState.BACK


def test_the_second_relay_is_enough_but_one_that_came_back_has_forgotten_us() -> None:
    watch = RelayWatch([ONE, OTHER])
    assert watch.look([OTHER], GRACE_S) is RelayState.FINE
    assert watch.look([ONE, OTHER], GRACE_S + 1) is RelayState.FINE
    assert watch.look([ONE], GRACE_S + 2) is RelayState.BACK


def test_who_has_relays_announces_itself_there_and_only_a_relay_relays(tmp_path: Path) -> None:
    plain = P2pdOptions(KEY)
    assert "-relayService=0" in plain.arguments(tmp_path, "key")
    relay = P2pdOptions(KEY, is_relay=True)
    assert {"-relayService=1", "-forceReachabilityPublic=1"} <= set(relay.arguments(tmp_path, "key"))
    assert relay.environment()["GOMAXPROCS"] == "1"
    relay_maddr = "/ip4/192.0.2.1/tcp/1/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
    hidden = P2pdOptions(KEY, relays=(relay_maddr,))
    assert hidden.circuits() == (f"{relay_maddr}/p2p-circuit",)
    words = hidden.announcing(("/ip4/10.0.0.1/tcp/2", *hidden.circuits())).arguments(tmp_path, "key")
    assert f"-trustedRelays={relay_maddr}" in words
    assert f"-announceAddrs=/ip4/10.0.0.1/tcp/2,{relay_maddr}/p2p-circuit" in words
    assert not any(
        "relay" in word.lower() and "=1" in word
        for word in hidden.without_relays().arguments(tmp_path, "key")
        if not word.startswith("-relay=")
    )
