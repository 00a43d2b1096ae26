from __future__ import annotations

from swarm_node.dht.records.entry_check import Entry
from swarm_node.dht.records.keys import MAX_ENTRIES
from swarm_node.dht.records.told_entries import ToldEntries

NOW = 1000.0


def entry(owner: str, expiration: float = NOW + 60) -> Entry:
    return Entry(owner, expiration, b"", owner.encode())


def test_the_longest_lived_of_each_owner_stays_and_the_dead_do_not_count() -> None:
    told = ToldEntries()
    told.add("one", [entry("a", NOW + 5), entry("b", NOW)], NOW)
    told.add("two", [entry("a", NOW + 9)], NOW)
    told.add("three", [entry("a", NOW + 7)], NOW)
    assert told.entries == {"a": entry("a", NOW + 9)} == told.bounded("salt")


def test_keepers_without_bounds_hide_nobody_whom_more_keepers_tell() -> None:
    """Three of ten keepers are the attacker's; the honest ones hold a full key, mostly of his owners."""
    told = ToldEntries()
    honest = [entry(f"honest {number}") for number in range(40)]
    stored = [entry(f"sybil {number}") for number in range(MAX_ENTRIES - len(honest))]
    for keeper in range(3):
        invented = [entry(f"invented {keeper} {number}") for number in range(MAX_ENTRIES)]
        told.add(f"liar {keeper}", [*invented, *stored, *invented], NOW)
    for keeper in range(5):
        told.add(f"keeper {keeper}", [*stored, *honest], NOW)
    kept = told.bounded("salt")
    assert len(kept) == MAX_ENTRIES
    assert {each.owner for each in honest} <= kept.keys()
