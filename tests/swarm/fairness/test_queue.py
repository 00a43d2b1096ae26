from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.fairness.queue import FairQueue


def fill(keys: str) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for key in keys.split():
        queue.push(key[0], key)
    return queue


def test_owners_take_turns_however_much_each_has():
    assert list(fill("a1 a2 a3 b1 c1 c2").in_turn()) == ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert list(fill("a1 a2 a3").in_turn()) == ["a1", "a2", "a3"]
    assert list(FairQueue().in_turn()) == []
    assert FairQueue().first() is None


def test_groups_take_turns_before_their_owners():
    queue: FairQueue[str] = FairQueue()
    for key in ["a1", "a2", "b1", "c1", "d1", "d2"]:
        queue.push(key[0], key, "crowd" if key[0] in "abc" else "home")
    assert list(queue.in_turn()) == ["a1", "d1", "b1", "d2", "c1", "a2"]
    assert queue.first() == "a1"
    queue.rotate("a", "crowd")
    assert list(queue.in_turn()) == ["d1", "b1", "d2", "c1", "a1", "a2"]
    queue.discard("d", "d1", "home")
    queue.discard("d", "d2", "home")
    assert list(queue.in_turn()) == ["b1", "c1", "a1", "a2"]


def test_who_had_a_turn_goes_behind():
    queue = fill("a1 a2 b1 c1")
    queue.rotate("a")
    assert list(queue.in_turn()) == ["b1", "c1", "a1", "a2"]
    queue.rotate("nobody")


def test_a_key_waits_once():
    queue = fill("a1 a1 b1")
    assert len(queue) == 2
    queue.discard("a", "a1")
    queue.discard("a", "a1")
    queue.discard("b", "a1")
    assert list(queue.in_turn()) == ["b1"]


@given(
    moves=st.lists(
        st.tuples(st.sampled_from(["push", "discard", "rotate"]), st.sampled_from("abc"), st.integers(0, 3))
    )
)
def test_agrees_with_lists(moves):
    queue: FairQueue[tuple[str, int]] = FairQueue()
    owners: list[str] = []
    waiting: dict[str, list[tuple[str, int]]] = {}
    for move, owner, number in moves:
        key = (owner, number)
        if move == "push":
            queue.push(owner, key)
            if owner not in owners:
                owners.append(owner)
                waiting[owner] = []
            if key not in waiting[owner]:
                waiting[owner].append(key)
        elif move == "discard":
            queue.discard(owner, key)
            if key in waiting.get(owner, []):
                waiting[owner].remove(key)
                if not waiting[owner]:
                    owners.remove(owner)
                    del waiting[owner]
        else:
            queue.rotate(owner)
            if owner in owners:
                owners.remove(owner)
                owners.append(owner)
        longest = max(map(len, waiting.values()), default=0)
        turns = [waiting[owner][i] for i in range(longest) for owner in owners if i < len(waiting[owner])]
        assert list(queue.in_turn()) == turns
        assert len(queue) == len(turns)
