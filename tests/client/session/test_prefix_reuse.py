"""What hops hold from before is not fed again, however they disagree, and changes no token."""

from __future__ import annotations

from typing import Any

import pytest

from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.client.generation import Generation
from swarm_node.swarm.errors import ErrorCode, UsageError
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.protocol.messages import ErrorMessage
from tests.doubles.fake_swarm import BOS, FakeSwarm, expected, settle

FIRST = [BOS, *b"A chat that begins with a rather long question, so that there are some whole pages of it."]
MORE = [*b" And then there is more."]
N = 20
OPTIONS: dict[str, Any] = {"max_new_tokens": N, "ignore_eos": True}


async def _first_turn(model: AsyncSwarmModel) -> list[int]:
    """The prompt of the second turn."""
    answer = await model.generate_detailed(FIRST, **OPTIONS)
    assert answer.cached_tokens == 0
    return FIRST + list(answer.token_ids) + MORE


def _fed(swarm: FakeSwarm) -> dict[str, int]:
    """Tokens that each node was sent; forgets them."""
    fed = {peer: sum(step.tokens for step in node.steps) for peer, node in swarm.nodes.items()}
    for node in swarm.nodes.values():
        node.steps.clear()
    return fed


def _pages(tokens: int) -> int:
    return tokens // PAGE_TOKENS * PAGE_TOKENS


async def _second_turn(swarm: FakeSwarm, model: AsyncSwarmModel, prompt: list[int]) -> Generation:
    await settle()
    _fed(swarm)
    answer = await model.generate_detailed(prompt, **OPTIONS)
    assert list(answer.token_ids) == expected(prompt, N)
    return answer


async def test_the_second_turn_of_a_chat_feeds_only_what_is_new() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    async with swarm.client() as model:
        prompt = await _first_turn(model)
        answer = await _second_turn(swarm, model, prompt)
    held = _pages(len(FIRST) + N - 1)  # the last token was chosen, but never fed
    assert answer.cached_tokens == held
    assert _fed(swarm) == dict.fromkeys("ab", len(prompt) - held + N - 1)
    assert answer.hops[0].prefill.tokens == len(prompt) - held
    assert answer.as_dict()["timings"]["cached_tokens"] == held  # type: ignore[index]


async def test_a_prompt_that_is_held_as_a_whole_is_asked_for_its_last_token() -> None:
    prompt = FIRST[: 2 * PAGE_TOKENS]
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    async with swarm.client() as model:
        await model.generate(prompt, max_new_tokens=1)
        answer = await _second_turn(swarm, model, prompt)
    assert answer.cached_tokens == len(prompt) - 1
    assert swarm.nodes["a"].steps[0].position == len(prompt) - 1
    assert (answer.hops[0].prefill.steps, answer.hops[0].decode.steps) == (1, N - 1)


@pytest.mark.parametrize("forgetful", ["a", "b"])
@pytest.mark.parametrize("kept", [0, 1, 2])
async def test_hops_that_hold_more_than_others_are_rolled_back(forgetful: str, kept: int) -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    async with swarm.client() as model:
        prompt = await _first_turn(model)
        await settle()
        swarm.nodes[forgetful].engine.forget_pages(kept)
        answer = await _second_turn(swarm, model, prompt)
    assert answer.cached_tokens == kept * PAGE_TOKENS
    assert {node.steps[0].position for node in swarm.nodes.values()} == {kept * PAGE_TOKENS}
    assert answer.repairs == 0


async def test_a_node_without_a_prefix_cache() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    swarm.nodes["b"].behaviour.page_tokens = 0
    async with swarm.client() as model:
        answer = await _second_turn(swarm, model, await _first_turn(model))
    assert (answer.cached_tokens, answer.repairs) == (0, 0)


@pytest.mark.parametrize(
    ("page_tokens", "length"),
    [
        (PAGE_TOKENS, 1),
        (PAGE_TOKENS, PAGE_TOKENS + 1),
        (PAGE_TOKENS, 100 * PAGE_TOKENS),  # more than was offered
        (PAGE_TOKENS, 2 * PAGE_TOKENS),  # more than it has
        (0, PAGE_TOKENS),
        (16, PAGE_TOKENS),
    ],
)
async def test_a_node_that_lies_is_left(page_tokens: int, length: int) -> None:
    swarm = await FakeSwarm(liar="0-5", honest="0-5").start()
    swarm.announce("honest", decode_ms_per_block=50.0)
    behaviour = swarm.nodes["liar"].behaviour
    behaviour.page_tokens, behaviour.opened_length = page_tokens, length
    async with swarm.client() as model:
        answer = await model.generate_detailed(FIRST, **OPTIONS)
    assert list(answer.token_ids) == expected(FIRST, N)
    assert [hop.peer_id for hop in answer.hops] == ["honest"]
    assert len(swarm.nodes["liar"].opens) == 1


async def test_the_off_switch() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    async with swarm.client(prefix_cache=False) as model:
        answer = await _second_turn(swarm, model, await _first_turn(model))
    assert answer.cached_tokens == 0
    node = swarm.nodes["a"]
    await settle()
    assert not [message for message in (*node.opens, *node.closes) if message.prefix]


async def test_only_the_same_salt_finds_pages() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    salt = bytes(range(32))
    async with swarm.client(prefix_salt=salt) as model:
        prompt = await _first_turn(model)
    async with swarm.client() as stranger:
        assert (await _second_turn(swarm, stranger, prompt)).cached_tokens == 0
    async with swarm.client(prefix_salt=salt) as again:
        assert (await _second_turn(swarm, again, prompt)).cached_tokens > 0
    with pytest.raises(UsageError, match="salt"):
        swarm.client(prefix_salt=b"short")


async def test_what_was_fed_before_it_was_stopped_is_kept() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    async with swarm.client() as model:
        async for _ in model.stream(FIRST, ignore_eos=True):
            break
        answer = await _second_turn(swarm, model, FIRST + MORE)
    assert answer.cached_tokens == _pages(len(FIRST))


async def test_a_session_that_was_given_up_goes_on_from_its_pages_at_once() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    expired = ErrorMessage(None, None, ErrorCode.SESSION_EXPIRED, "idle for long", True)
    swarm.nodes["a"].behaviour.error_at_step = (9, expired)
    async with swarm.client() as model:
        answer = await model.generate_detailed(FIRST, **OPTIONS)
    assert list(answer.token_ids) == expected(FIRST, N)
    assert (answer.repairs, answer.cached_tokens) == (1, 0)
    assert answer.timings.repair_s < 1  # nobody was banned
    again = [step for step in swarm.nodes["a"].steps if step.tokens > 1][-1]
    assert again.position == _pages(len(FIRST))


async def test_after_nonsense_nothing_is_built_on_what_was_held() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5", c="3-5").start()
    async with swarm.client() as model:
        prompt = await _first_turn(model)
        await settle()
        (used,) = (peer for peer in "bc" if swarm.nodes[peer].engine.known_pages)
        swarm.nodes[used].behaviour.nan_at_step = 3
        answer = await _second_turn(swarm, model, prompt)
    assert (answer.repairs, answer.cached_tokens > 0) == (1, True)
    first, second = swarm.nodes["a"].opens[-2:]
    assert first.prefix
    assert not second.prefix


async def test_a_replacement_with_other_weights_shares_nothing_downstream() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    async with swarm.client(router=swarm.router(clock=iter(range(0, 10**6, 100)).__next__)) as model:
        prompt = await _first_turn(model)
        swarm.announce("a", weights="int4")
        await settle()
        answer = await _second_turn(swarm, model, prompt)
    assert answer.cached_tokens == 0
    held = swarm.nodes["a"], swarm.nodes["b"]
    assert [set(node.opens[-1].prefix) & set(node.opens[0].prefix) != set() for node in held] == [True, False]


async def test_a_hop_is_asked_for_no_pages_that_another_one_before_it_fed() -> None:
    """Or a liar would spoil answers long after it has left."""
    swarm = await FakeSwarm(m="0-2", a="0-2", b="3-5").start()
    swarm.announce("a", decode_ms_per_block=50.0)
    async with swarm.client() as model:
        prompt = await _first_turn(model)
        assert swarm.nodes["m"].steps
        swarm.nodes["m"].die()
        swarm.network.kill("m")
        answer = await _second_turn(swarm, model, prompt)
    assert [hop.peer_id for hop in answer.hops] == ["a", "b"]
    assert answer.cached_tokens == 0
    first, last = swarm.nodes["b"].opens[0], swarm.nodes["b"].opens[-1]
    assert first.prefix
    assert last.prefix
    assert not set(first.prefix) & set(last.prefix)


async def test_pages_behind_a_replacement_have_no_names() -> None:
    """What comes after it rests on its word; the old names would give it out for its predecessor's."""
    swarm = await FakeSwarm(a="0-1", b="2-3", c="4-4", e="5-5", d="2-3").start()
    swarm.announce("d", decode_ms_per_block=50.0)
    async with swarm.client() as model:
        stream = model.stream(FIRST, **OPTIONS)
        await anext(stream)
        swarm.nodes["b"].die()
        swarm.network.kill("b")
        answer = await stream.finish()
        assert list(answer.token_ids) == expected(FIRST, N)
        await settle()
    assert [repair.lost for repair in answer.repaired] == [("b",)]
    for name in "ad":
        assert swarm.nodes[name].closes[-1].prefix
    for name in "ce":
        assert swarm.nodes[name].attaches[-1].unnamed
        assert not swarm.nodes[name].closes[-1].prefix
