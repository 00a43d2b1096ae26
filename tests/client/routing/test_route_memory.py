"""The next turn of a chat goes where its pages are, unless another route is cheaper all the same."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.client.routing.route_finder import Need
from swarm_node.client.routing.route_memory import Held, RouteMemory
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.types import Hop, Route, Span
from tests.doubles.fake_swarm import BOS, FakeSwarm, expected, settle

A, B = (Route((Hop(peer, Span(0, 6)),)) for peer in "ab")
IDS = list(range(100, 100 + 4 * PAGE_TOKENS))
NEED = Need(kv_tokens=300, prompt_tokens=200, new_tokens=20)


def test_the_longest_known_beginning_is_found() -> None:
    memory = RouteMemory()
    assert memory.recall(IDS) is None
    memory.remember(IDS[: 2 * PAGE_TOKENS + 5], A)
    assert memory.recall(IDS) == Held(A, 2 * PAGE_TOKENS)
    assert memory.recall(IDS[: PAGE_TOKENS + 3]) == Held(A, PAGE_TOKENS)
    assert memory.recall(IDS[: PAGE_TOKENS - 1]) is None
    assert memory.recall([1, *IDS[1:]]) is None
    memory.remember(IDS[:PAGE_TOKENS], B)
    assert memory.recall(IDS) == Held(A, 2 * PAGE_TOKENS)
    assert memory.recall(IDS[:PAGE_TOKENS]) == Held(B, PAGE_TOKENS)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4), st.booleans()), max_size=30))
def test_it_stays_small_and_knows_the_newest(sessions: list[tuple[int, int, bool]]) -> None:
    memory, model = RouteMemory(max_pages=6), OrderedDict[tuple[int, int], Route]()
    for first, pages, a in sessions:
        route = A if a else B
        memory.remember([first] * (pages * PAGE_TOKENS), route)
        for page in range(pages):
            model[first, page] = route
            model.move_to_end((first, page))
        while len(model) > 6:
            model.popitem(last=False)
    assert len(memory) == len(model)
    for (first, page), route in model.items():
        assert memory.recall([first] * ((page + 1) * PAGE_TOKENS)) == Held(route, (page + 1) * PAGE_TOKENS)


@pytest.mark.parametrize(
    ("change", "chosen"),
    [
        ({}, "a"),
        ({"queue_ms": 1.0}, "a"),  # dearer, but not by what the prompt costs
        ({"queue_ms": 60.0}, "b"),
        ({"state": "draining"}, "b"),
        ({"span": Span(0, 5)}, "b"),
        ({"free_kv_tokens": 10}, "b"),
    ],
)
async def test_a_route_that_holds_the_prompt_is_preferred_by_what_that_saves(
    change: dict, chosen: str
) -> None:
    swarm = await FakeSwarm(a="0-5", b="0-5").start()
    swarm.announce("b", decode_ms_per_block=0.9)  # cheaper for a sequence that nobody knows
    swarm.announce("a", **change)
    router = swarm.router()
    assert (await router.plan(NEED)).route.hops[0].peer_id == "b"
    assert (await router.plan(NEED, held=Held(A, 192))).route.hops[0].peer_id == chosen


async def test_a_banned_peer_is_not_gone_back_to() -> None:
    swarm = await FakeSwarm(a="0-5", b="0-5").start()
    router = swarm.router()
    router.health.ban("a", router.now(), 60)
    assert (await router.plan(NEED, held=Held(A, 192))).route.hops[0].peer_id == "b"


async def test_a_remembered_peer_is_dialled_where_it_is_now() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    swarm.announce("a", maddrs=("/ip4/10.0.0.1/tcp/1",))
    (hop,) = (await swarm.router().plan(NEED, held=Held(A, 192))).route.hops
    assert hop.maddrs == ("/ip4/10.0.0.1/tcp/1",)


async def test_the_next_turn_goes_where_the_first_went() -> None:
    swarm = await FakeSwarm(a="0-5", b="0-5").start()
    prompt = [BOS, *b"Something to say that is longer than one page of tokens, or even two of them."]
    clock = iter(range(0, 10**6, 100)).__next__  # each plan reads the directory
    async with swarm.client(router=swarm.router(clock=clock)) as model:
        first = await model.generate_detailed(prompt, max_new_tokens=10, ignore_eos=True)
        (used,) = (hop.peer_id for hop in first.hops)
        swarm.announce(used, queue_ms=2.0)
        await settle()
        prompt += first.token_ids
        second = await model.generate_detailed(prompt, max_new_tokens=10, ignore_eos=True)
        other = await model.generate_detailed([BOS, *b"another"], max_new_tokens=10, ignore_eos=True)
    assert [hop.peer_id for hop in second.hops] == [used]
    assert second.cached_tokens == 2 * PAGE_TOKENS
    assert list(second.token_ids) == expected(prompt, 10)
    assert len(other.hops) == 1
