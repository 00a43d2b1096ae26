"""Peers that do anything in any order with sessions of their own: honest ones beside them get what they would
get alone, bit for bit, and all memory is given back."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from scripts.lab.tiny_model import write_tiny_hybrid
from swarm_node.node.engine.engine import Engine, EngineSettings
from swarm_node.node.engine.jobs import StepDone, StepFailed, TokenSequence
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.shards.native.span import NativeSpan
from swarm_node.swarm.codecs.kinds import NONE
from swarm_node.swarm.errors import ErrorCode
from swarm_node.swarm.protocol.branches import rows_of, too_many
from swarm_node.swarm.protocol.field_types import Branches
from swarm_node.swarm.protocol.messages import Want
from swarm_node.swarm.types import Span
from tests.node.engine.driver import Driver
from tests.node.engine.schedules import check_books

X = np.random.default_rng(0).standard_normal((1600, 64), np.float32)
HONEST = slice(1500, 1600)
NAMES = [bytes([number]) * 32 for number in range(60)]
SPANS = (Span(0, 4), Span(0, 4), Span(1, 3), Span(0, 1), Span(3, 4))
LENGTHS = (1, 31, 32, 33, 64, 100, 500, 1400)
STEPS = (1, 1, 1, 2, 8, 9, 31, 32, 33, 64, 200, 512)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NativeSpan:
    path = write_tiny_hybrid(tmp_path_factory.mktemp("hybrid"))
    options = LoadOptions(dtype="float32", quantize="none", kernels="native")
    with open_checkpoint(str(path)) as checkpoint:
        return load_backend(checkpoint, Span(0, 4), options)


class Hostile:
    """Opens, steps, goes back, forks, makes steps void and closes; its names lie, its rows may be anything,
    and it says of any of them that they are guesses or branches."""

    def __init__(self, driver: Driver, rng: random.Random, name: str) -> None:
        self.driver, self.rng, self.name = driver, rng, name
        self.sessions: list[TokenSequence] = []
        self.steps: list[asyncio.Future] = []
        self.number = 0  # of its last step

    def open(self, **more) -> None:
        rng = self.rng
        names = rng.choice([(), tuple(NAMES[: rng.randint(0, 60)]), tuple(rng.sample(NAMES, 20))])
        more = {"span": rng.choice(SPANS), "tokens": rng.choice(LENGTHS), **more}
        made = self.driver.sequence(**more, owner=self.name, group="hostile", prefix=names)
        self.sessions += [made] if made else []

    def fork(self) -> None:
        parent = self.rng.choice(self.sessions)
        shared = self.rng.randint(0, parent.settled)
        if parent.keeps(shared, parent.max_tokens):
            self.open(span=parent.span, tokens=parent.max_tokens, parent=parent, parent_tokens=shared)

    def close(self) -> None:
        ended = self.sessions.pop(self.rng.randrange(len(self.sessions)))
        self.driver.engine.close_sequence(ended, tuple(NAMES[: self.rng.choice([0, 1, 60])]))

    def step(self) -> None:
        rng, session = self.rng, self.rng.choice(self.sessions)
        end = session.length
        back = [max(0, end - 1), max(0, end - 33), rng.randint(0, end + 2), 0, end // 32 * 32]
        position = rng.choice([end, end, end, *back])
        if (count := min(rng.choice(STEPS), session.max_tokens - position)) < 1:
            return
        branches = self.branches(count) if rng.random() < 0.5 else ()
        every = count + rows_of(branches)
        rows = X[rng.randrange(900) :][:every] * np.float32(rng.choice([1, 1, 1, 1e30]))
        payload = rng.choice([None] * 20 + [b"short", np.full_like(rows, np.nan).tobytes()])
        late = rng.choice([0] * 20 + [1])
        want = rng.choice(list(Want))
        more = {"branches": branches, "guess": rng.choice([0, 0, every, rng.randint(0, every)])}
        self.number += 1
        sent = self.driver.submit(
            session, rows, position, step=self.number, want=want, payload=payload, deadline_ns=late, **more
        )
        self.steps.append(sent)

    def branches(self, count: int) -> Branches:
        """As many as may be behind a step of ``count`` rows, or fewer."""
        rng, found = self.rng, []
        while not too_many(count, (*found, more := (rng.randint(0, count), rng.choice([1, 1, 1, 8, 40])))):
            found.append(more)
            if rng.random() < 0.1:
                break
        return tuple(found)

    def void(self) -> None:
        first = self.number - self.rng.choice([0, 1, 3, self.number])
        self.driver.engine.void(self.rng.choice(self.sessions), first, self.rng.choice([first, 1 << 60]))

    async def run(self, until: asyncio.Event) -> None:
        while not until.is_set():
            move = self.rng.random()
            if move < 0.2 or not self.sessions:
                self.open()
            else:
                moves = ((self.fork, 0.3), (self.close, 0.4), (self.void, 0.5), (self.step, 1.0))
                next(each for each, below in moves if move < below)()
            if self.rng.random() < 0.3:
                await asyncio.sleep(0)
            if len(self.steps) > 60:
                await asyncio.gather(*self.steps)
                self.steps.clear()
        for session in self.sessions:
            self.driver.engine.close_sequence(session)
        await asyncio.gather(*self.steps)


async def converse(driver: Driver, rng: random.Random, alone: np.ndarray) -> bool:
    """Feeds HONEST with drafts that are taken back in part; whether it got to the end. Its names are those
    that the others lie with."""
    names = tuple(NAMES[: rng.randint(1, 3)])
    for _ in range(500):
        session = driver.sequence(tokens=120, owner="honest", group="honest", prefix=names)
        if session is not None:
            break
        await asyncio.sleep(0.001)
    else:
        return False
    at = rng.choice([session.length, 0])  # another hop may know less
    while at < len(alone):
        count = min(len(alone) - at, rng.choice([1, 1, 7, 33]))
        outcome = await driver.submit(session, X[HONEST][at : at + count], at)
        if isinstance(outcome, StepFailed):
            assert outcome.code is ErrorCode.OVERLOADED  # goes back into shared pages, and no room for copies
            break
        assert isinstance(outcome, StepDone)
        rows = NONE.decode(outcome.payload, outcome.rows, 64)
        assert np.array_equal(rows, alone[at : at + count])
        at += count - (rng.randint(0, count - 1) if rng.random() < 0.3 else 0)
    driver.engine.close_sequence(session, names)
    return at >= len(alone)


@pytest.mark.parametrize("seed", range(12))
async def test_honest_sessions_get_what_they_get_alone(model: NativeSpan, seed: int) -> None:
    rng = random.Random(seed)
    memory = OwnMemory(model, "float32", 120)
    alone = model.forward(X[HONEST], [memory.slice(0, 100)], memory.pool)
    pool = model.new_pool(2 * rng.choice([60, 150, 500]), "float32", 2 * rng.choice([8, 13, 20, 40]))
    engine = Engine(model, pool, threads=1, settings=EngineSettings(rng.choice([16, 64, 512])))
    engine.start()
    driver, over = Driver(engine), asyncio.Event()
    hostile = [Hostile(driver, rng, f"hostile{number}") for number in range(3)]
    with np.errstate(all="ignore"):
        working = [asyncio.create_task(each.run(over)) for each in hostile]
        try:
            async with asyncio.timeout(60):
                ended = [await converse(driver, rng, alone) for _ in range(5)]
        finally:
            over.set()
            await asyncio.gather(*working)
    assert any(ended)
    await engine.run(lambda: None)  # what was dropped is delivered before that
    check_books(engine)
    await engine.stop()
