"""Answers with up to 128 guesses under way, at random timings: token for token the plain ones, and nothing is
left behind."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from swarm_node.client.drafting.source import Guess
from swarm_node.client.drafting.worth import MOST_AHEAD
from tests.client.drafting.test_speculative_generation import RowByRowHead, SuccessorHead
from tests.doubles.fake_swarm import BOS, EOS, FakeSwarm
from tests.doubles.oracle import Oracle, OracleSequence, send_all
from tests.doubles.virtual_time import in_virtual_time

pytestmark = pytest.mark.slow

N = 90
OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.1},
    {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2, "logprobs": 2},
    {"temperature": 1.0, "frequency_penalty": 0.5, "presence_penalty": 0.3},
    {"stop": ["q", "zz"], "temperature": 1.3},
]


@pytest.fixture(autouse=True)
def drafting() -> None:
    """As it is, but where a test says otherwise."""


class Hesitant(Oracle):
    """Takes a random time for each guess; sometimes it knows nothing, and once it may fail."""

    def __init__(self, answer: Any, rng: random.Random) -> None:
        agreement = rng.choice((0.0, 0.5, 0.9, 0.99))
        wrong = {number for number in range(N) if rng.random() > agreement}
        super().__init__(answer, wrong.__contains__)
        self.rng = rng
        self.fails_at = rng.choice((None, None, rng.randrange(200)))

    def begin(self, prompt: Any, max_tokens: int) -> OracleSequence:
        self.sequences.append(_Hesitant(self))
        return self.sequences[-1]


class _Hesitant(OracleSequence):
    _oracle: Hesitant
    asked = 0

    async def guess(self, after: Any) -> Guess | None:
        oracle = self._oracle
        guess = await super().guess(after)
        await asyncio.sleep(oracle.rng.choice((0.0, 0.001, 0.02)))
        self.asked += 1
        if self.asked == oracle.fails_at:
            raise RuntimeError("it broke")
        return guess if oracle.rng.random() < 0.95 else None


async def _same(seed: int) -> None:
    rng = random.Random(seed)
    options = {"max_new_tokens": N, "seed": seed, **OPTIONS[seed % len(OPTIONS)]}
    prompt = [BOS, *(rng.randrange(97, 123) for _ in range(rng.randrange(4, 60)))]
    swarm = await FakeSwarm(rng.choice((0.0, 0.005, 0.05)), a="0-1", b="2-3", c="4-5").start()
    chain = rng.random() < 0.7
    head = RowByRowHead()
    async with swarm.client(head, chain=chain) as model:
        plain = await model.generate_detailed(prompt, speculate="off", **options)
    oracle = Hesitant([*plain.token_ids, EOS], rng)
    async with swarm.client(local=swarm.local(head, draft=oracle), chain=chain) as model:
        answer = await model.generate_detailed(prompt, **options)
        for _ in range(3):
            await asyncio.sleep(0)
        names = {task.get_name() for task in asyncio.all_tasks()}
    assert answer.token_ids == plain.token_ids
    assert (answer.text, answer.finish_reason) == (plain.text, plain.finish_reason)
    assert answer.logprobs == plain.logprobs
    assert all(each.closed for each in oracle.sequences)
    assert "drafting" not in names
    assert answer.speculated.passes + answer.speculated.accepted in (
        len(answer.token_ids) - 1,
        len(answer.token_ids),  # a guess behind the last token was right, too, or another pass had begun
    )


@pytest.mark.parametrize("seed", range(5))
@in_virtual_time
async def test_as_it_decides_itself(seed: int) -> None:
    await _same(seed)


@pytest.mark.parametrize("seed", range(5))
def test_everything_is_sent(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    send_all(monkeypatch, ahead=MOST_AHEAD, together=seed % 8)

    @in_virtual_time
    async def test() -> None:
        await _same(seed + 100)

    test()


@in_virtual_time
async def test_a_long_copy_goes_on_without_a_pause() -> None:
    """Its speed is that of the hops, not that of trips."""
    swarm = await FakeSwarm(0.05, a="0-1", b="2-3", c="4-5").start()
    song = [*b"abcdefghijklmnopqrstuvwxyz0123456789"]
    async with swarm.client(SuccessorHead(song)) as model:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await model.generate_detailed([*song], max_new_tokens=30, speculate="off")
        plain_s = (loop.time() - began) / 30
        began = loop.time()
        answer = await model.generate_detailed([*song], max_new_tokens=200)
        seconds = loop.time() - began
    assert answer.text.encode() == bytes((song * 6)[:200])
    assert answer.speculated.passes < 15
    assert seconds < 200 * plain_s / 10
