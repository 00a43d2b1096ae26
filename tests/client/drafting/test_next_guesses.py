"""What the block behind a model's last guesses, against the same block that reads everything anew."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest

from swarm_node.client.drafting import next_guesses
from swarm_node.client.drafting.next_guesses import MOST_DEPTH, NextModel
from swarm_node.client.drafting.source import Guess
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_client_model, load_next_part
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from tests.shards.behind import with_behind

VOCAB, HIDDEN = 61, 64


@pytest.fixture(scope="module", params=["qwen3_5_text", "deepseek_v3", "glm4_moe"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    with_behind(request.param, folder)
    return folder


@pytest.fixture
def model(folder: Path) -> Iterator[NextModel]:
    options = LoadOptions(dtype="float32", quantize="none")
    with open_checkpoint(str(folder)) as checkpoint:
        client = load_client_model(checkpoint, options)
        model = NextModel(load_next_part(checkpoint, client, options), client)
        yield model
        model.close()


def plain(model: NextModel, tokens: Sequence[int], rows: np.ndarray, after: Sequence[int]) -> np.ndarray:
    """Logits behind ``after``: all pairs in one go, then one guess after the other."""
    part, memory = model.part, OwnMemory(model.part.blocks, "float32", len(tokens) + len(after))
    hidden = model.client.final_norm(rows)
    made = part.forward(hidden, tokens, [memory.slice(0, len(tokens))], memory.pool)[-1:]
    for position, token in enumerate(after, start=len(tokens)):
        made = part.forward(part.hidden(made), [token], [memory.slice(position, 1)], memory.pool)
    return part.logits(made)[0]


def assert_is(guess: Guess | None, logits: np.ndarray) -> None:
    assert guess is not None
    assert guess.second is not None
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    second, first = np.argsort(chances)[-2:]
    assert (guess.token, guess.second[0]) == (first, second)
    assert guess.chance == pytest.approx(chances[first], rel=1e-3)
    assert guess.second[1] == pytest.approx(chances[second], rel=1e-3)


def pairs(random: Random, count: int) -> tuple[list[int], np.ndarray]:
    rows = np.random.default_rng(random.randrange(1 << 30)).normal(size=(count, HIDDEN)).astype(np.float32)
    return [random.randrange(VOCAB) for _ in range(count)], rows


@pytest.mark.parametrize("seed", range(3))
async def test_guesses_do_not_depend_on_what_was_guessed_before(model: NextModel, seed: int) -> None:
    random = Random(seed)
    source = model.begin([], 200)
    tokens, rows = pairs(random, 1)
    source.came(tokens, rows)
    chain: list[int] = []
    for _ in range(60):
        if random.random() < 0.3:  # of what came, some had been guessed
            new, more = pairs(random, random.choice([1, 2, 5, 9]))
            right = chain[: random.randrange(4)]
            new[: len(right)] = right[: len(new)]
            source.came(new, more)
            tokens, rows = [*tokens, *new], np.concatenate((rows, more))
        after = chain[: random.randrange(MOST_DEPTH)]
        after += [random.randrange(VOCAB) for _ in range(random.randrange(MOST_DEPTH - len(after)))]
        guess = await source.guess(after)
        assert_is(guess, plain(model, tokens, rows, after))
        assert guess is not None
        chain = [*after, guess.token]
    source.close()


async def test_where_its_room_is_full_it_goes_on_from_the_latest(
    model: NextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(next_guesses, "ROOM", 40)
    monkeypatch.setattr(next_guesses, "KEPT_PAIRS", 12)
    monkeypatch.setattr(next_guesses, "PAIRS_AT_ONCE", 5)
    source, random = model.begin([], 10_000), Random(1)
    tokens, rows = pairs(random, 1)
    source.came(tokens, rows)
    first, restarts = 0, 0
    for _ in range(50):
        new, more = pairs(random, random.choice([1, 2, 7, 20]))
        source.came(new, more)
        had = len(tokens)
        tokens, rows = [*tokens, *new], np.concatenate((rows, more))
        if len(tokens) - 12 > had or len(tokens) + MOST_DEPTH - first > 40:
            first, restarts = len(tokens) - 12, restarts + 1
        for after in ([], [3, 4]):
            assert_is(await source.guess(after), plain(model, tokens[first:], rows[first:], after))
    assert restarts > 3


async def test_what_comes_while_it_guesses_is_for_the_next_guess(model: NextModel) -> None:
    source, random = model.begin([], 100), Random(2)
    tokens, rows = pairs(random, 4)
    source.came(tokens, rows)
    gate = threading.Event()
    model.thread.submit(gate.wait)
    asked = asyncio.create_task(source.guess([7]))
    await asyncio.sleep(0)
    new, more = pairs(random, 2)
    source.came(new, more)
    gate.set()
    assert_is(await asked, plain(model, tokens, rows, [7]))
    assert_is(await source.guess([]), plain(model, [*tokens, *new], np.concatenate((rows, more)), []))


async def test_nothing_is_guessed_too_early_too_far_or_too_late(model: NextModel) -> None:
    source, random = model.begin([], 100), Random(3)
    assert await source.guess([]) is None
    source.came(*pairs(random, 1))
    assert await source.guess([0] * MOST_DEPTH) is None
    assert await source.guess([0] * (MOST_DEPTH - 1)) is not None
    source.close()
    assert await source.guess([]) is None


async def test_kinds_tell_depth_and_how_sure_it_is(model: NextModel) -> None:
    source, random = model.begin([], 100), Random(4)
    source.came(*pairs(random, 3))
    guesses = [await source.guess([1] * depth) for depth in range(MOST_DEPTH)]
    kinds = [guess.kind for guess in guesses if guess is not None]
    assert {name for name, _ in kinds} == {next_guesses.NEXT}
    assert [number // 4 for _, number in kinds] == [0, 1, 2, 3, 3, 3, 3, 3]
    for guess, (_, number) in zip(guesses, kinds, strict=True):
        assert guess is not None
        assert number % 4 == sum(guess.chance >= least for least in next_guesses.SURE)


async def test_rows_that_overflow_are_no_guess(model: NextModel) -> None:
    source = model.begin([], 100)
    source.came([1], np.full((1, HIDDEN), np.inf, np.float32))
    assert await source.guess([]) is None


async def test_who_waits_when_the_model_closes_is_told(model: NextModel) -> None:
    source = model.begin([], 100)
    source.came(*pairs(Random(5), 1))
    gate = threading.Event()
    model.thread.submit(gate.wait)
    asked = asyncio.create_task(source.guess([]))
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(model.close))
    with pytest.raises(RuntimeError, match="closed"):
        await asked
    gate.set()
    await closing
