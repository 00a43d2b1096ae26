from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node.owner_lru import SPARE_RANKS, OwnerLru
from swarm_node.swarm.errors import LocalProtocolError

OWNERS = "abc"
moves = st.lists(
    st.tuples(st.sampled_from(["add", "use", "remove", "pop"]), st.integers(0, 100), st.integers(1, 5)),
    max_size=80,
)


@given(moves=moves)
def test_any_schedule_gives_up_the_oldest_thing_of_who_has_most(moves) -> None:
    lru: OwnerLru[int] = OwnerLru()
    kept: list[tuple[str, int, int]] = []  # owner, thing, size; least recently used first
    for number, (move, which, size) in enumerate(moves):
        if move == "add":
            owner = OWNERS[which % len(OWNERS)]
            lru.add(owner, number, size)
            kept.append((owner, number, size))
        elif kept and move == "use":
            kept.append(kept.pop(which % len(kept)))
            lru.use(*kept[-1][:2])
        elif kept and move == "remove":
            lru.remove(*kept.pop(which % len(kept))[:2])
        elif kept:
            held = {owner: sum(each[2] for each in kept if each[0] == owner) for owner in OWNERS}
            thing = lru.pop()
            (owner,) = (each[0] for each in kept if each[1] == thing)
            assert held[owner] == max(held.values())
            assert thing == next(each[1] for each in kept if each[0] == owner)
            kept = [each for each in kept if each[1] != thing]
        assert (lru.size, len(lru)) == (sum(each[2] for each in kept), len(kept))
        assert all(lru.size_of(o) == sum(each[2] for each in kept if each[0] == o) for o in OWNERS)
    assert sorted(lru.pop() for _ in kept) == sorted(each[1] for each in kept)
    with pytest.raises(LocalProtocolError):
        lru.pop()


def test_a_thing_is_kept_once() -> None:
    lru: OwnerLru[str] = OwnerLru()
    lru.add("a", "thing", 1)
    with pytest.raises(LocalProtocolError):
        lru.add("a", "thing", 1)
    lru.add("b", "thing", 1)  # another owner's


def test_coming_and_going_leaves_nothing_behind() -> None:
    lru: OwnerLru[int] = OwnerLru()
    for number in range(2000):
        lru.add(str(number), number, 1)
        lru.remove(str(number), number)
    lru.add("a", 1, 1)
    assert len(lru._ranks) <= SPARE_RANKS + 2
