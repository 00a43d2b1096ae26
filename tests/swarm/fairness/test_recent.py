from __future__ import annotations

from swarm_node.swarm.fairness.recent import RecentEvents, RecentMap


def test_events_count_for_a_while():
    events = RecentEvents(10.0, 100)
    for at in (0.0, 4.0, 8.0):
        events.add("a", at)
    events.add("b", 8.0)
    assert [events.count("a", now) for now in (9.9, 10.0, 14.0, 17.9, 18.0)] == [3, 2, 1, 1, 0]
    events.take_back("b")
    events.take_back("b")
    assert (events.count("b", 8.0), len(events)) == (0, 0)


def test_names_are_bounded_and_the_longest_quiet_is_forgotten():
    events = RecentEvents(10.0, 2)
    for name in ("a", "b", "a", "c"):
        events.add(name, 0.0)
    assert [events.count(name, 1.0) for name in "abc"] == [2, 0, 1]


def test_of_more_names_those_set_longest_ago_are_forgotten() -> None:
    known: RecentMap[str, int] = RecentMap(3)
    for number, name in enumerate("abcab"):
        known[name] = number
    assert list(known.items()) == [("c", 2), ("a", 3), ("b", 4)]
    assert known.get("c") == 2  # to read one keeps it where it is
    known["d"] = 5
    assert list(known) == ["a", "b", "d"]
    assert known.setdefault("e", 6) == 6
    assert list(known) == ["b", "d", "e"]
