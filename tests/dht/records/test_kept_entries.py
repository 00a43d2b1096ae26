"""What a DHT node keeps, and for whom it makes room."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.dht.records.kept_entries import KeptEntries
from swarm_node.dht.records.keys import INDEX_SPEAKERS, MAX_KEYS_OF_OWNER

KEY, INDEX = b"k" * 20, b"i" * 20


class Keeper:
    """Stores as a keeper's callers do: ``answer`` first, ``put`` if that does not know."""

    def __init__(self, **bounds: int) -> None:
        self.now = 1000.0
        self.kept = KeptEntries([INDEX], clock=lambda: self.now, **bounds)

    def store(
        self,
        owner: str,
        group: str,
        key: bytes = KEY,
        *,
        life: float = 60.0,
        body: bytes = b"",
        via: str = "",
        value: bytes = b"",
    ) -> bool:
        value = value or b"%s %f" % (owner.encode(), self.now)
        entry = key, owner, value, self.now + life, via or group, body
        answer = self.kept.answer(*entry)
        return self.kept.put(*entry, by_owner=not via) if answer is None else answer

    def owners(self, key: bytes = KEY) -> set[str]:
        return set(self.kept.entries(key))

    def groups(self, key: bytes = KEY) -> Counter[str]:
        return Counter(entry.group for entry in self.kept.entries(key).values())


def test_who_is_in_may_stay_and_newcomers_of_the_same_network_wait() -> None:
    keeper = Keeper(max_entries=2)
    assert keeper.store("a", "net 1")
    assert keeper.store("b", "net 1")
    assert not keeper.store("c", "net 1")
    keeper.now += 1
    assert keeper.store("a", "net 1")
    assert keeper.owners() == {"a", "b"}


def test_newer_entries_replace_older_ones_and_not_the_other_way_round() -> None:
    keeper = Keeper()
    assert keeper.store("a", "net 1", life=10, value=b"new")
    assert keeper.store("a", "net 1", life=10, value=b"new")  # the same once more
    assert not keeper.store("a", "net 1", life=10, value=b"other")
    assert not keeper.store("a", "net 1", life=9, value=b"old")
    assert not keeper.store("b", "net 1", life=-1)
    assert keeper.kept.entries(KEY)["a"].value == b"new"


def test_newcomer_of_another_network_always_finds_room_in_a_key_that_one_network_has_filled() -> None:
    keeper = Keeper(max_entries=512)
    assert keeper.store("early", "honest 0")
    filled = [keeper.store(f"sybil {number}", f"attacker {number % 8}") for number in range(600)]
    assert filled.count(True) >= 511
    for number in range(256):
        assert keeper.store(f"honest {number}", f"honest {number}"), number
    groups = keeper.groups()
    assert {f"honest {number}" for number in range(256)} | {"early"} <= keeper.owners()
    assert max(groups[f"attacker {number}"] for number in range(8)) <= 33
    for number in range(1000):  # and the flood goes on
        keeper.store(f"more {number}", f"attacker {number % 8}")
    assert {f"honest {number}" for number in range(256)} | {"early"} <= keeper.owners()


def test_invented_owners_fill_a_keeper_and_give_way_to_another_network() -> None:
    keeper = Keeper(max_total=1000)
    assert keeper.store("early", "honest")
    for number in range(2000):
        keeper.store(f"sybil {number}", "attacker", key=number.to_bytes(20))
    assert len(keeper.kept) == 1000
    for number in range(100):
        assert keeper.store(f"honest {number}", f"honest {number}", key=(1 << 30 | number).to_bytes(20))
    assert len(keeper.kept) == 1000
    assert keeper.owners() == {"early"}


def test_one_owner_has_a_handful_of_keys() -> None:
    keeper = Keeper()
    stored = [keeper.store("a", f"net {number}", key=number.to_bytes(20)) for number in range(1000)]
    assert stored.count(True) == MAX_KEYS_OF_OWNER == len(keeper.kept)
    keeper.now += 61
    assert keeper.store("a", "net 1")
    assert len(keeper.kept) == 1


def test_expired_entries_make_room_first_and_counts_stay_exact() -> None:
    keeper = Keeper(max_total=3, max_entries=3)
    for owner, life in (("a", 10.0), ("b", 20.0), ("c", 30.0)):
        keeper.store(owner, "net 1", life=life)
    assert not keeper.store("d", "net 1")
    keeper.store("a", "net 1", life=25)  # refreshed: it outlives b now
    keeper.now += 21
    assert keeper.owners() == {"a", "c"}
    assert keeper.store("d", "net 1")
    assert len(keeper.kept) == 3


def test_bringing_an_entry_of_another_does_not_make_it_weigh_more() -> None:
    """Whoever reads an entry somewhere may bring it here before its owner does."""
    keeper = Keeper(max_entries=10)
    for number in range(8):
        keeper.store(f"sybil {number}", "attacker")
    keeper.store("honest", "home")
    keeper.now += 1
    assert keeper.store("honest", "home", via="attacker")  # newer, but brought by the attacker
    assert keeper.kept.entries(KEY)["honest"].group == "home"
    keeper.now += 1
    assert keeper.store("late", "elsewhere", via="attacker")
    assert keeper.kept.entries(KEY)["late"].group == "attacker"
    value = keeper.kept.entries(KEY)["late"].value
    assert keeper.store("late", "elsewhere", value=value)  # the very same entry, from its owner
    assert keeper.kept.entries(KEY)["late"].group == "elsewhere"


def test_index_keeps_some_of_those_who_say_the_same_and_tells_the_others_that_it_is_said() -> None:
    keeper = Keeper()
    for number in range(10_000):
        assert keeper.store(f"node {number}", f"net {number}", INDEX, body=b"popular")
    assert len(keeper.owners(INDEX)) == INDEX_SPEAKERS
    assert keeper.store("single", "home", INDEX, body=b"rare")
    assert "single" in keeper.owners(INDEX)


@pytest.mark.parametrize("models", [1, 600])
def test_index_that_is_full_of_others_has_room_for_a_new_model(models: int) -> None:
    keeper = Keeper(max_entries=512)
    for number in range(3000):
        keeper.store(f"node {number}", f"attacker {number % 100}", INDEX, body=b"%d" % (number % models))
    assert keeper.store("single", "home", INDEX, body=b"rare")
    assert "single" in keeper.owners(INDEX)


def test_model_of_many_speakers_makes_room_for_a_new_one_where_every_network_has_one_entry() -> None:
    keeper = Keeper(max_entries=64)
    for number in range(64):
        assert keeper.store(f"node {number}", f"net {number}", INDEX, body=b"%d" % (number // 16))
    assert keeper.store("single", "home", INDEX, body=b"rare")
    assert "single" in keeper.owners(INDEX)


_liars = st.lists(
    st.tuples(
        st.integers(0, 39),  # which liar
        st.sampled_from([b"model", b"gone", b"another", b"junk"]),
        st.integers(0, 25),  # seconds until then
        st.sampled_from([1.0, 30.0, 66.0]),  # for how long
    ),
    max_size=120,
)


@given(_liars, st.integers(1, INDEX_SPEAKERS - 1), st.integers(0, 19))
def test_no_liars_of_fewer_networks_than_speakers_make_a_model_vanish(
    lies: list[tuple[int, bytes, int, float]], networks: int, phase: int
) -> None:
    """They speak, are silent, withdraw, say other things: the honest node's entry is there from its first
    announcement on, for as long as it refreshes."""
    keeper = Keeper(max_entries=24)
    refresh_at = keeper.now + phase
    for number in range(40):
        keeper.store(f"liar {number}", f"attacker {number % networks}", INDEX, body=b"model")
    for liar, body, pause, life in lies:
        end = keeper.now + pause
        while refresh_at <= end:
            keeper.now = refresh_at
            assert keeper.store("honest", "home", INDEX, body=b"model")
            refresh_at += 20
            assert "honest" in keeper.owners(INDEX)
        keeper.now = end
        keeper.store(f"liar {liar}", f"attacker {liar % networks}", INDEX, body=body, life=life)
        if end >= 1000 + phase and refresh_at > 1000 + phase:
            assert "honest" in keeper.owners(INDEX)


@given(_liars, st.integers(INDEX_SPEAKERS, 40))
def test_liars_of_many_networks_cost_a_model_one_refresh_at_most(
    lies: list[tuple[int, bytes, int, float]], networks: int
) -> None:
    keeper = Keeper()
    for number in range(40):
        keeper.store(f"liar {number}", f"attacker {number % networks}", INDEX, body=b"model")
    refresh_at = keeper.now
    for liar, body, pause, life in lies:
        end = keeper.now + pause
        while refresh_at <= end:
            keeper.now = refresh_at
            assert keeper.store("honest", "home", INDEX, body=b"model")
            said = [entry.saying for entry in keeper.kept.entries(INDEX).values()]
            assert keeper.kept._made(INDEX, "", b"", 0, "", b"model").saying in said
            refresh_at += 20
        keeper.now = end
        keeper.store(f"liar {liar}", f"attacker {liar % networks}", INDEX, body=body, life=life)


_stores = st.lists(
    st.tuples(
        st.integers(0, 9),  # owner
        st.integers(0, 3),  # network
        st.integers(0, 3),  # key, the last one of the index
        st.integers(1, 60),  # life
        st.integers(0, 10),  # pause
        st.booleans(),  # brought by another
    ),
    max_size=150,
)


@given(_stores)
def test_counts_are_those_of_what_lives_whatever_is_stored(
    stores: list[tuple[int, int, int, int, int, bool]],
) -> None:
    keeper = Keeper(max_entries=5, max_total=12)
    keys = [b"a" * 20, b"b" * 20, b"c" * 20, INDEX]
    for owner, network, key, life, pause, by_other in stores:
        keeper.now += pause
        keeper.store(
            str(owner),
            f"net {network}",
            keys[key],
            life=life,
            body=b"%d" % (owner % 3),
            via=f"net {life % 4}" if by_other else "",
        )
        kept = keeper.kept
        held = {each: dict(kept.entries(each)) for each in keys}
        entries = [entry for found in held.values() for entry in found.values()]
        assert all(entry.expiration > keeper.now for entry in entries)
        assert len(kept) == len(entries) == kept._all.held <= 12
        for each, found in held.items():
            assert len(found) <= 5
            if found:
                groups = Counter(entry.group for entry in found.values())
                shares = kept._keys[each].shares
                assert {group: shares.of_group(group) for group in groups} == groups
                assert shares.held == len(found)
    keeper.now += 100
    assert len(keeper.kept) == 0
    assert not keeper.kept._keys
    assert not keeper.kept._of_owner


def test_refusals_and_refreshes_cost_the_same_however_much_is_kept() -> None:
    keeper = Keeper(max_total=8192)
    for number in range(9000):
        keeper.store(f"sybil {number}", f"net {number % 4000}", key=(number // 100).to_bytes(20))
    began = time.process_time()
    for number in range(2000):
        assert not keeper.store(f"more {number}", f"net {number % 4000}", key=(number % 80).to_bytes(20))
    for number in range(2000):
        keeper.now += 1e-4
        assert keeper.store(f"sybil {number}", f"net {number % 4000}", key=(number // 100).to_bytes(20))
    assert time.process_time() - began < 1  # adding up what is kept takes a millisecond a time
