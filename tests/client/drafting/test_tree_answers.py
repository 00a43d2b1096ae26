"""Answers with second guesses are those without, token for token: wherever the chain is wrong and a branch is
right or not, and whatever becomes of hops and their room for branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from swarm_node.client.decoding.head_batch import Branches
from swarm_node.client.generation import Generation
from swarm_node.client.guided.guide import Guide
from swarm_node.client.session.swarm_session import SwarmSession
from swarm_node.node.engine import step_plan
from tests.client.drafting.test_speculative_generation import SAMPLED, RowByRowHead
from tests.doubles.fake_swarm import BOS, FakeSwarm
from tests.doubles.oracle import Oracle, send_all

pytestmark = pytest.mark.slow

PROMPT = [BOS, *b"Say something that is long enough, please."]
N = 48
VARIED: dict[str, Any] = {"temperature": 1.0, "seed": 5}
"""Nothing of such an answer is found in its text."""


@pytest.fixture(autouse=True)
def drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is drafted is sent."""
    send_all(monkeypatch, ahead=40, together=0)


def _often(number: int) -> bool:
    return number % 4 == 3


def _mostly(number: int) -> bool:
    return number % 12 != 3


def _always(number: int) -> bool:
    return True


def _never(number: int) -> bool:
    return False


async def _answer(swarm: FakeSwarm, oracle: Oracle | None, *, chain: bool = True, **more: Any) -> Generation:
    options = {"max_new_tokens": N, "ignore_eos": True, **(more or VARIED)}
    if oracle is None:
        options["speculate"] = "off"
    async with swarm.client(local=swarm.local(RowByRowHead(), draft=oracle), chain=chain) as model:
        return await model.generate_detailed(PROMPT, **options)


async def _plain(**options: Any) -> Generation:
    return await _answer(await FakeSwarm(a="0-5").start(), None, **options)


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("second", [_always, _never, _mostly])
async def test_an_answer_is_the_same_in_fewer_passes(chain: bool, second: Callable[[int], bool]) -> None:
    plain = await _plain()
    swarm = await FakeSwarm(a="0-1", b="2-3", c="4-5").start()
    answer = await _answer(swarm, Oracle(plain.token_ids, _often, second), chain=chain)
    assert any(step.branches for step in swarm.nodes["c"].steps)
    chained = await _answer(swarm, Oracle(plain.token_ids, _often), chain=chain)
    assert answer.token_ids == chained.token_ids == plain.token_ids
    told = answer.speculated
    assert told.passes + told.accepted == N - 1
    if second(4):
        assert told.passes < chained.speculated.passes
    assert {hop.prefill.tokens for hop in answer.hops} == {len(PROMPT)}


@pytest.mark.parametrize("options", SAMPLED)
async def test_sampled_answers_are_the_same(options: dict[str, Any]) -> None:
    options = {"seed": 5, **options}
    plain = await _plain(**options)
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    drafted = await _answer(swarm, Oracle(plain.token_ids, _often, _mostly), **options)
    assert drafted.token_ids == plain.token_ids
    assert drafted.text == plain.text
    assert drafted.logprobs == plain.logprobs
    assert drafted.speculated.accepted > N * 2 / 3


@pytest.mark.parametrize("most", [2, 3, 5, 8, 9, 12, 15, 19])
async def test_an_answer_may_end_in_a_branch(most: int) -> None:
    plain = await _plain()
    swarm = await FakeSwarm(a="0-5").start()
    oracle = Oracle(plain.token_ids, _often, _always)
    answer = await _answer(swarm, oracle, **{**VARIED, "max_new_tokens": most})
    assert answer.token_ids == plain.token_ids[:most]
    for step in swarm.nodes["a"].steps:  # the last token is never fed
        own = step.tokens - sum(count for _, count in step.branches)
        reach = max([own, *(row + count for row, count in step.branches)])
        assert step.position + reach <= len(PROMPT) + most - 1


async def test_a_stop_string_in_a_branch() -> None:
    plain = await _plain()
    for start in range(2, 12):
        options = {**VARIED, "stop": plain.text[start : start + 2]}
        until = await _plain(**options)
        swarm = await FakeSwarm(a="0-5").start()
        answer = await _answer(swarm, Oracle(plain.token_ids, _often, _always), **options)
        assert (answer.text, answer.token_ids) == (until.text, until.token_ids)
        assert answer.finish_reason == until.finish_reason == "stop_string"


async def test_a_hop_that_takes_no_branches_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = await _plain()
    monkeypatch.setattr("swarm_node.node.sessions.handshake.FEATURES", ())
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    answer = await _answer(swarm, Oracle(plain.token_ids, _often, _always))
    assert answer.token_ids == plain.token_ids
    assert not any(step.branches for node in swarm.nodes.values() for step in node.steps)


async def test_hops_without_room_leave_branches_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = await _plain()
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    monkeypatch.setattr(step_plan, "_has_room_for_branches", lambda memory, job: False)
    answer = await _answer(swarm, Oracle(plain.token_ids, _often, _always))
    assert answer.token_ids == plain.token_ids
    assert any(step.branches for step in swarm.nodes["a"].steps)
    assert answer.speculated.passes >= sum(map(_often, range(1, N)))  # no branch has helped


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize(
    ("name", "step"),
    [("die_at_step", 5), ("die_at_step", 9), ("mute_at_step", 7), ("nan_at_step", 6), ("garbage_at_step", 6)],
)
async def test_a_hop_that_fails_while_a_tree_is_checked(name: str, step: int, chain: bool) -> None:
    plain = await _plain()
    swarm = await FakeSwarm(a="0-1", b="2-3", c="4-5", d="2-3").start()
    swarm.announce("d", decode_ms_per_block=50.0)
    setattr(swarm.nodes["b"].behaviour, name, step)
    answer = await _answer(swarm, Oracle(plain.token_ids, _often, _mostly), chain=chain)
    assert answer.token_ids == plain.token_ids
    assert answer.repairs or name == "nan_at_step"  # in a step that was void by then


async def test_only_what_a_guide_lets_follow_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**VARIED, "guide": Guide("regex", "[a-m]{60}")}
    plain = await _plain(**options)
    fed: list[int] = []
    send = SwarmSession.send

    def note(
        self: SwarmSession, ids: Sequence[int], x: np.ndarray | None = None, branches: Branches = ()
    ) -> None:
        fed.extend([*ids, *(token for _, tokens in branches for token in tokens)])
        send(self, ids, x, branches)

    monkeypatch.setattr(SwarmSession, "send", note)
    swarm = await FakeSwarm(a="0-5").start()
    # Where the first guess is wrong, and the guide forbids it, the other is sent in its place.
    oracle = Oracle(plain.token_ids, lambda number: number % 4 == 3, _always, miss=128)
    answer = await _answer(swarm, oracle, **options)
    assert answer.token_ids == plain.token_ids
    assert set(fed) <= set(b"abcdefghijklm")
    assert answer.speculated.passes < 6
