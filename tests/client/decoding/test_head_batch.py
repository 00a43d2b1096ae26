"""Concurrent generations share calls of the head: the same tokens, fewer calls, and nobody waits for a dead
one."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from swarm_node.client.decoding.head_batch import HeadBatcher
from swarm_node.client.decoding.sampling import ChosenToken, Sampler, SamplingParams
from swarm_node.swarm.errors import LocalProtocolError, RemoteProtocolError, StreamClosedError
from tests.doubles.fake_swarm import HIDDEN, FakeSwarm, ToyHead, expected, settle


class GatedHead(ToyHead):
    """Waits in each call, if told to; keeps how many rows each had and in which thread it ran."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.calls: list[int] = []
        self.threads: set[int] = set()

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        self.calls.append(len(hidden))
        self.threads.add(threading.get_ident())
        self.entered.set()
        assert self.gate.wait(5)
        return super().logits(hidden)


def _states(n: int) -> list[np.ndarray]:
    return list(np.random.default_rng(n).standard_normal((n, 1, HIDDEN), np.float32))


def _tokens(states: Sequence[np.ndarray]) -> list[int]:
    return [int(ToyHead().logits(state)[0].argmax()) for state in states]


async def _choose(heads: HeadBatcher, state: np.ndarray) -> int:
    chosen = await heads.choose(state, Sampler(SamplingParams()))
    (choice,) = chosen.choices
    assert np.array_equal(chosen.x, ToyHead().embed([choice.token]))
    return choice.token


def _batcher(head: GatedHead, generations: int, **options: int) -> HeadBatcher:
    heads = HeadBatcher(head, **options)
    for _ in range(generations):
        heads.begin()
    return heads


async def test_who_is_alone_needs_no_thread() -> None:
    head = GatedHead()
    heads = _batcher(head, 1)
    (state,) = _states(1)
    assert await _choose(heads, state) == _tokens([state])[0]
    assert head.threads == {threading.get_ident()}
    await heads.close()


async def test_a_slow_head_never_blocks_the_event_loop_for_long() -> None:
    head = GatedHead()
    heads = _batcher(head, 1)
    (state,) = _states(1)
    heads._usual_s = 0.02
    assert await _choose(heads, state) == _tokens([state])[0]
    assert threading.get_ident() not in head.threads
    await heads.close()


async def test_those_who_come_while_a_call_runs_share_the_next() -> None:
    head = GatedHead()
    heads = _batcher(head, 7, max_rows=4)
    states = _states(7)
    head.gate.clear()
    tasks = [asyncio.create_task(_choose(heads, states[0]))]
    await asyncio.to_thread(head.entered.wait, 5)
    tasks += [asyncio.create_task(_choose(heads, state)) for state in states[1:]]
    await settle()
    head.gate.set()
    assert await asyncio.gather(*tasks) == _tokens(states)
    assert head.calls == [1, 4, 2]
    assert (heads.calls, heads.rows) == (3, 7)
    assert threading.get_ident() not in head.threads
    await heads.close()


async def test_generations_are_kept_in_two_cohorts() -> None:
    head = GatedHead()
    heads = _batcher(head, 8)
    states = _states(8)
    sampler = Sampler(SamplingParams())

    async def decode(state: np.ndarray, delay: float) -> None:
        for _ in range(12):
            await heads.choose(state, sampler)
            await asyncio.sleep(delay)  # the hops

    heads._usual_s = 0.01
    await asyncio.gather(*(decode(state, 0.002 + 0.001 * (n % 3)) for n, state in enumerate(states)))
    assert max(head.calls) == 4
    assert sum(head.calls) / len(head.calls) > 2
    await heads.close()


async def test_an_incomplete_cohort_is_not_waited_for_long() -> None:
    heads = _batcher(GatedHead(), 8)
    loop = asyncio.get_running_loop()
    for _ in range(3):
        began = loop.time()
        await _choose(heads, _states(1)[0])
        assert loop.time() - began < 0.5
    await heads.close()


async def test_the_event_loop_goes_on_while_the_head_works() -> None:
    head = GatedHead()
    heads = _batcher(head, 2)
    head.gate.clear()
    task = asyncio.create_task(_choose(heads, _states(1)[0]))
    await asyncio.to_thread(head.entered.wait, 5)
    await settle()
    assert not task.done()
    head.gate.set()
    await task
    await heads.close()


async def test_a_cancelled_row_is_not_computed_and_hurts_nobody() -> None:
    head = GatedHead()
    heads = _batcher(head, 6)
    states = _states(4)
    head.gate.clear()
    tasks = [asyncio.create_task(_choose(heads, states[0]))]
    await asyncio.to_thread(head.entered.wait, 5)
    tasks += [asyncio.create_task(_choose(heads, state)) for state in states[1:]]
    await settle()
    tasks[0].cancel()  # in the call that runs
    tasks[2].cancel()  # in the next
    await settle()
    head.gate.set()
    assert await tasks[1] == _tokens(states)[1]
    assert await tasks[3] == _tokens(states)[3]
    assert tasks[0].cancelled()
    assert tasks[2].cancelled()
    assert head.calls == [1, 2]
    await heads.close()


async def test_nonsense_in_one_row_ends_one_generation() -> None:
    heads = _batcher(GatedHead(), 3)
    states = _states(3)
    states[1] = states[1] * np.float32("nan")
    outcomes = await asyncio.gather(*(_choose(heads, state) for state in states), return_exceptions=True)
    good = _tokens([states[0], states[2]])
    assert [outcomes[0], outcomes[2]] == good
    assert isinstance(outcomes[1], RemoteProtocolError)
    await heads.close()


async def test_a_head_that_fails_fails_all_of_its_call() -> None:
    class Broken(ToyHead):
        def logits(self, hidden: np.ndarray) -> np.ndarray:
            raise RuntimeError("no memory")

    heads = HeadBatcher(Broken())
    for _ in range(2):
        heads.begin()
    for _ in range(2):  # and the thread lives on
        with pytest.raises(RuntimeError, match="no memory"):
            await _choose(heads, _states(1)[0])
    await heads.close()


async def test_closing_waits_for_the_call_and_refuses_the_rest() -> None:
    head = GatedHead()
    heads = _batcher(head, 2)
    states = _states(2)
    head.gate.clear()
    tasks = [asyncio.create_task(_choose(heads, states[0]))]
    await asyncio.to_thread(head.entered.wait, 5)
    tasks.append(asyncio.create_task(_choose(heads, states[1])))
    await settle()
    closing = asyncio.create_task(heads.close())
    await settle()
    assert not closing.done()
    head.gate.set()
    await closing
    assert await tasks[0] == _tokens(states)[0]
    with pytest.raises(StreamClosedError):
        await tasks[1]
    with pytest.raises(StreamClosedError):
        await _choose(heads, states[0])
    assert head.calls == [1]
    await heads.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "swarm-head"]


async def test_a_draft_is_looked_at_up_to_what_is_wrong_in_it() -> None:
    head = GatedHead()
    heads = _batcher(head, 1)
    states = np.concatenate(_states(20))  # (20, hidden)
    right = _tokens(np.split(states, len(states)))
    for good, calls in ((19, [8, 8, 4]), (12, [8, 8]), (8, [8, 8]), (7, [8]), (0, [8])):
        draft = [token if number < good else token ^ 1 for number, token in enumerate(right[:19])]
        head.calls.clear()
        chosen = await heads.choose(states, Sampler(SamplingParams()), draft)
        assert [choice.token for choice in chosen.choices] == right[: good + 1]
        assert np.array_equal(chosen.x, ToyHead().embed(right[good : good + 1]))
        assert head.calls == calls
    with pytest.raises(LocalProtocolError, match="20 hidden states for a draft of 3"):
        await heads.choose(states, Sampler(SamplingParams()), draft[:3])
    await heads.close()


class TreeHead(ToyHead):
    """Says what was made up for each row, which is named by its first number; keeps the rows it was shown."""

    def __init__(self, logits: np.ndarray) -> None:
        self.table = logits  # (rows, vocab)
        self.shown: list[int] = []

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        rows = hidden[:, 0].astype(int)
        self.shown += rows.tolist()
        return self.table[rows]


class Tree:
    """A step of random guesses over a few tokens, with rows that a table of logits belongs to: equal tokens
    behind each other have equal rows, wherever they are."""

    def __init__(self, rng: random.Random) -> None:
        self.names: dict[tuple[int, ...], int] = {}
        self.chain = [rng.randrange(FEW) for _ in range(rng.randint(1, 9))]  # the first is certain
        self.after = [rng.randrange(FEW)] * rng.randint(0, 1)  # the first of the next step
        self.draft = [*self.chain[1:], *self.after]
        self.branches: list[tuple[int, list[int]]] = []
        for _ in range(rng.randint(0, 6)):
            row = rng.randint(1, len(self.chain))
            tokens = [rng.randrange(FEW) for _ in range(rng.randint(1, 5))]
            if tokens[:1] != self.draft[row - 1 : row]:
                self.branches.append((row, tokens))
        rows = [self._row(self.chain[: number + 1]) for number in range(len(self.chain))]
        for row, tokens in self.branches:
            path = [*self.chain[:row], *tokens]
            rows += [self._row(path[: row + number + 1]) for number in range(len(tokens))]
        self.hidden = np.tile(np.array(rows, np.float32)[:, None], (1, HIDDEN))
        self.head = TreeHead(np.random.default_rng(rng.randrange(99)).standard_normal((len(self.names), FEW)))
        self.head.table = self.head.table.astype(np.float32)

    def _row(self, path: Sequence[int]) -> int:
        return self.names.setdefault(tuple(path), len(self.names))

    def plain(self, sampler: Sampler) -> tuple[list[ChosenToken], list[int]]:
        """The choices one by one, for as long as there are rows for them, and those rows."""
        known = {(*self.chain[:row], *tokens) for row, tokens in self.branches}
        known |= {tuple(self.chain)}
        path, choices, looked = self.chain[:1], [], []
        while any(way[: len(path)] == tuple(path) for way in known) and not sampler.is_over:
            row = self.names[tuple(path)]
            looked.append(row)
            choices.append(sampler.choose(self.head.table[row]))
            path = [*path, choices[-1].token]
        return choices, looked


FEW = 3
"""Tokens of which trees are made: their guesses are often right."""


@pytest.mark.parametrize("seed", range(300))
async def test_a_tree_is_judged_as_choosing_one_by_one_would(seed: int) -> None:
    rng = random.Random(seed)
    tree = Tree(rng)
    params: dict[str, Any] = rng.choice(
        [
            {},
            {"temperature": 1.0},
            {"temperature": 0.8, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
            {"logprobs": 2},
        ]
    )

    def sampler() -> Sampler:
        return Sampler(SamplingParams(seed=seed, **params), [1], guide=Few(most) if guided else None)

    guided, most = rng.random() < 0.4, rng.randint(1, 9)
    expected_, rows = tree.plain(sampler())
    heads = HeadBatcher(tree.head)
    used = sampler()
    chosen = await heads.choose(tree.hidden, used, tree.draft, tree.branches)
    assert list(chosen.choices) == expected_
    assert np.array_equal(chosen.x, tree.head.embed([expected_[-1].token]))
    assert set(rows) <= set(tree.head.shown)
    again = sampler()
    for row in rows:
        again.choose(tree.head.table[row])
    assert used._random.getstate() == again._random.getstate()  # one random number a token
    await heads.close()


class Few:
    """Any token but the first, so many times."""

    def __init__(self, left: int) -> None:
        self.left = left

    @property
    def is_over(self) -> bool:
        return not self.left

    def allows(self, token: int) -> bool:
        return token > 0

    def allowed(self) -> np.ndarray:
        return np.arange(1, FEW)

    def accept(self, token: int) -> None:
        assert token > 0
        self.left -= 1

    def forced(self) -> tuple[int, ...]:
        return ()

    def copy(self) -> Few:
        return Few(self.left)


async def test_no_row_of_a_branch_is_looked_at_that_no_choice_leads_to() -> None:
    states = np.concatenate(_states(12))  # a chain of 6, branches of 2, 3 and 1
    right = _tokens(np.split(states, len(states)))
    draft = [right[0], right[1], right[2] ^ 1, 0, 0]
    head = GatedHead()
    heads = _batcher(head, 1)
    for branches, count, calls in (
        ([(2, [9, 9]), (3, [right[2], right[8], 1]), (4, [5])], 3 + 2, [6, 3]),
        ([(3, [right[2] ^ 2, 9]), (3, [right[2], right[8] ^ 1, 1]), (4, [5])], 3 + 1, [6, 3]),
        ([(3, [right[2] ^ 2, 9]), (4, [right[2], right[8], 1]), (2, [5])], 3, [6]),
    ):
        head.calls.clear()
        chosen = await heads.choose(states, Sampler(SamplingParams()), draft, branches)
        assert [choice.token for choice in chosen.choices] == [*right[:3], *right[8:]][:count]
        assert head.calls == calls
    with pytest.raises(LocalProtocolError, match="6 hidden states for a draft of 4"):
        await heads.choose(states, Sampler(SamplingParams()), draft[:4], [(1, [1] * 6)])
    await heads.close()


async def test_drafts_of_several_share_calls() -> None:
    head = GatedHead()
    heads = _batcher(head, 4)
    all_states = [np.concatenate(_states(n)) for n in (3, 12, 1, 5)]
    head.gate.clear()
    first = asyncio.create_task(_choose(heads, _states(1)[0]))
    await asyncio.to_thread(head.entered.wait, 5)
    expected_ = [_tokens(np.split(states, len(states))) for states in all_states]
    tasks = [
        asyncio.create_task(heads.choose(states, Sampler(SamplingParams()), right[:-1]))
        for states, right in zip(all_states, expected_, strict=True)
    ]
    await settle()
    head.gate.set()
    chosen = await asyncio.gather(*tasks)
    await first
    assert [[choice.token for choice in each.choices] for each in chosen] == expected_
    assert max(head.calls) <= 16
    assert len(head.calls) < 1 + len(tasks) + 1
    await heads.close()


@pytest.mark.parametrize("sampled", [False, True])
async def test_answers_side_by_side_are_those_made_alone(sampled: bool) -> None:
    head = GatedHead()
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    prompts = [[256, *f"prompt {number}".encode()] for number in range(6)]
    options = {"max_new_tokens": 12, "ignore_eos": True, "temperature": float(sampled), "seed": 4}
    async with swarm.client(head) as model:
        alone = [(await model.generate_detailed(prompt, **options)).token_ids for prompt in prompts]
        calls = len(head.calls)
        together = await asyncio.gather(*(model.generate_detailed(prompt, **options) for prompt in prompts))
    assert [answer.token_ids for answer in together] == alone
    assert len(head.calls) - calls < calls  # some were shared
    if not sampled:
        assert list(alone[0]) == expected(prompts[0], 12)
