from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.errors import LocalProtocolError
from swarm_node.swarm.fairness.owner_lru import OwnerLru
from swarm_node.swarm.fairness.shares import Holder

OWNERS = [Holder("a", "home"), Holder("b", "home"), Holder("c", "office")]
moves = st.lists(
    st.tuples(st.sampled_from(["add", "use", "remove", "pop"]), st.integers(0, 100), st.integers(1, 5)),
    max_size=80,
)


@given(moves=moves)
def test_any_schedule_gives_up_the_oldest_thing_of_who_has_most(moves) -> None:
    lru: OwnerLru[int] = OwnerLru()
    kept: list[tuple[Holder, int, int]] = []  # owner, thing, size; least recently used first
    for number, (move, which, size) in enumerate(moves):
        if move == "add":
            owner = OWNERS[which % len(OWNERS)]
            lru.add(owner, number, size)
            kept.append((owner, number, size))
        elif kept and move == "use":
            kept.append(kept.pop(which % len(kept)))
            lru.use(kept[-1][1])
        elif kept and move == "remove":
            lru.remove(kept.pop(which % len(kept))[1])
        elif kept:
            held = {owner: lru.size_of(owner) for owner in OWNERS}
            of_group = {owner.group: held[owner] for owner in OWNERS}
            of_group["home"] = held[OWNERS[0]] + held[OWNERS[1]]
            thing = lru.pop()
            (owner,) = (each[0] for each in kept if each[1] == thing)
            assert of_group[owner.group] == max(of_group.values())
            assert held[owner] == max(size for each, size in held.items() if each.group == owner.group)
            assert thing == next(each[1] for each in kept if each[0] == owner)
            kept = [each for each in kept if each[1] != thing]
        assert (lru.size, len(lru)) == (sum(each[2] for each in kept), len(kept))
        for owner in {each[0] for each in kept}:
            assert lru.oldest_of(owner) == next(each[1] for each in kept if each[0] == owner)
        assert all(lru.size_of(o) == sum(each[2] for each in kept if each[0] == o) for o in OWNERS)
    assert sorted(lru.pop() for _ in kept) == sorted(each[1] for each in kept)
    with pytest.raises(LocalProtocolError):
        lru.pop()


def test_a_thing_is_kept_once() -> None:
    lru: OwnerLru[str] = OwnerLru()
    lru.add(OWNERS[0], "thing", 1)
    for owner in OWNERS:
        with pytest.raises(LocalProtocolError):
            lru.add(owner, "thing", 1)
    lru.remove("thing")
    lru.add(OWNERS[1], "thing", 1)
    assert lru.pop() == "thing"


def test_many_names_of_one_network_push_out_nobody_elsewhere() -> None:
    lru: OwnerLru[int] = OwnerLru()
    for number in range(10):
        lru.add(OWNERS[2], number, 1)
    for number in range(10, 110):
        lru.add(Holder(f"name{number}", "flood"), number, 1)
        while lru.size > 20:
            lru.pop()
    assert lru.size_of(OWNERS[2]) == 10
