"""Branches of steps: each row is what a session alone computes, and nothing of them remains."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from swarm_node.node.engine.batching import scheduler as scheduling
from swarm_node.node.engine.engine import Engine, EngineSettings
from swarm_node.node.engine.jobs import StepDone, StepFailed
from swarm_node.shards.formats.blocks.block import BlockConfig
from swarm_node.shards.formats.blocks.state import ShortConvConfig
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.swarm.codecs.kinds import NONE
from swarm_node.swarm.errors import ErrorCode, LocalProtocolError
from swarm_node.swarm.protocol.branches import MAX_CHAIN_ROWS, MAX_COMPUTED_ROWS, rows_of
from swarm_node.swarm.protocol.messages import Want
from swarm_node.swarm.types import Span
from tests.node.engine.driver import Driver
from tests.shards.models.block_cases import (
    GEMMA,
    HIDDEN,
    INDEXED,
    SOFTMAX,
    attention,
    block,
    checkpoint_of,
    latent,
    sparse,
)
from tests.shards.models.state_cases import delta, kept, mamba

HYBRID = (kept(delta()), block(attention(window=40)), block(state=mamba()), block())
KINDS: dict[str, tuple[BlockConfig, ...]] = {
    "attention": (block(),) * 2,
    "window": (block(attention(window=20)), block()),
    "chunk, sinks": (block(attention(chunk=48, sinks=True)),),
    "keys of another block": (*GEMMA, *(GEMMA[0], GEMMA[1])),
    "latent": (block(latent()),) * 2,
    "another's indexer": INDEXED["another's indexer"],
    "experts": (sparse(SOFTMAX), block()),
    "hybrid": HYBRID,
    "short convolution": (kept(ShortConvConfig(HIDDEN, 3)), block()),
    "states alone": (kept(delta()), kept(mamba())),
}
ELSEWHERE = ("attention", "window", "latent", "hybrid")
"""Those that are compared on each backend: others take the same ways through them."""
WAYS = {
    "native": LoadOptions(dtype="float32", quantize="none", kernels="native", deterministic=True),
    "torch": LoadOptions(dtype="float32", quantize="none", kernels="torch", deterministic=True),
    "mlx": LoadOptions(dtype="float32", quantize="none", device="mlx"),
}
X = np.random.default_rng(5).standard_normal((600, HIDDEN), np.float32)
CRASH = 666.0


@pytest.fixture(autouse=True)
def room_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows cost others nothing, but where a test says more."""
    monkeypatch.setattr(scheduling, "rows_beside", lambda certain, time: 1000)


class Model:
    """A backend whose forward raises, once the blocks have written, for a row that begins with CRASH.
    ``fed``: the rows of each slice that came."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.fed: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def forward(self, x: np.ndarray, slices: Any, pool: Any, span: Span | None = None) -> np.ndarray:
        self.fed += [part.count for part in slices]
        out = self._inner.forward(x, slices, pool, span)
        if (x[:, 0] == CRASH).any():
            raise RuntimeError("boom")
        return out

    def alone(self, x: np.ndarray) -> np.ndarray:
        """The rows of a session that was fed ``x`` and nothing else."""
        memory = OwnMemory(self._inner, "float32", len(x))
        return self._inner.forward(x, [memory.slice(0, len(x))], memory.pool)


@pytest.fixture(scope="module")
def model_of() -> Callable[..., Model]:
    made: dict[tuple[str, str], Model] = {}

    def load(way: str, kind: str) -> Model:
        if (way, kind) not in made:
            if way == "mlx":
                pytest.importorskip("mlx.core")
            blocks = KINDS[kind]
            with checkpoint_of(blocks) as checkpoint:
                made[way, kind] = Model(load_backend(checkpoint, Span(0, len(blocks)), WAYS[way]))
        return made[way, kind]

    return load


@pytest.fixture
async def open_engine() -> AsyncIterator[Callable[..., Driver]]:
    engines = []

    def open_(model: Model, slots: int = 800, states: int = 120, **settings: Any) -> Driver:
        has_states = any(each.state is not None for each in model.config.blocks)
        pool = model.new_pool(slots, "float32", states if has_states else 0)
        engine = Engine(
            model, pool, threads=1, settings=EngineSettings(**{"max_batch_tokens": 64} | settings)
        )
        engine.start()
        engines.append(engine)
        return Driver(engine)

    yield open_
    for engine in engines:
        await engine.stop()
        load = engine.load()
        assert (load.sequences, load.used_slots, load.reserved_slots) == (0, 0, 0)
        assert (load.used_states, load.reserved_states) == (0, 0)


def step_of(position: int, chain: int, branches: tuple[tuple[int, int], ...], other: int = 0) -> np.ndarray:
    """The rows of a step of the session that is fed X, and of its branches, which are others."""
    rows = X[300 + other :][: rows_of(branches)]
    return np.concatenate([X[position : position + chain], rows])


def wanted(model: Model, before: np.ndarray, step: np.ndarray, branches: tuple[tuple[int, int], ...]):
    chain = len(step) - rows_of(branches)
    parts, at = [model.alone(np.concatenate([before, step[:chain]]))[len(before) :]], chain
    for row, count in branches:
        own = np.concatenate([before, step[:row], step[at : at + count]])
        parts.append(model.alone(own)[-count:])
        at += count
    return np.concatenate(parts)


def same(way: str, rows: np.ndarray, right: np.ndarray) -> bool:
    return np.array_equal(rows, right) if way != "mlx" else np.allclose(rows, right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        *(("native", kind) for kind in KINDS),
        *(pytest.param(way, kind, marks=pytest.mark.slow) for way in ("torch", "mlx") for kind in ELSEWHERE),
    ],
)
async def test_a_branch_has_the_rows_of_a_chain(model_of, open_engine, way, kind):
    """Behind each row of a step, at page borders and within pages, beside other sessions; and the session
    goes on as if they had not been."""
    model = model_of(way, kind)
    driver = open_engine(model)
    span = Span(0, len(KINDS[kind]))
    other = driver.sequence(span=span)
    await driver.rows(other, X[200:240], 0)
    every, together = tuple((row, 1 + row % 3) for row in range(5)), set[int]()
    for position in (0, 1, 29, 32, 63, 64):
        sequence = driver.sequence(span=span)
        if position:
            await driver.rows(sequence, X[:position], 0)
        for branches in (every, ((4, 3), (4, 1))):
            step = step_of(position, 4, branches)
            with driver.engine.together():
                beside = [driver.submit(other, X[at : at + 1], at - 200) for at in (240, 241)]
                came = driver.submit(sequence, step, position, branches=branches)  # the second is beside it
            outcome, *_ = await came, *[await each for each in beside]
            assert isinstance(outcome, StepDone)
            together.add(outcome.batch)
            assert (outcome.position, outcome.rows, outcome.branches) == (position, len(step), branches)
            rows = NONE.decode(outcome.payload, outcome.rows, HIDDEN)
            assert same(way, rows, wanted(model, X[:position], step, branches))
        after = await driver.rows(sequence, X[position + 4 : position + 9], position + 4)
        assert same(way, after, model.alone(X[: position + 9])[-5:])
        back = await driver.rows(sequence, X[position + 2 : position + 4], position + 2)
        assert same(way, back, model.alone(X[: position + 4])[-2:])
        driver.engine.close_sequence(sequence)
    assert 2 in together
    driver.engine.close_sequence(other)


@pytest.mark.parametrize("guess", [0, 9])
@pytest.mark.parametrize("kind", ["attention", "hybrid"])
async def test_beside_certain_rows_they_are_left_out_where_rows_are_dear(
    model_of, open_engine, monkeypatch, kind, guess
):
    """Whatever the client says of them; the step itself comes one batch later."""
    monkeypatch.setattr(scheduling, "rows_beside", lambda certain, time: 0)
    model = model_of("native", kind)
    driver = open_engine(model)
    span, branches = Span(0, len(KINDS[kind])), ((0, 4), (4, 1), (2, 4))
    plain, other, sequence = (driver.sequence(span=span) for _ in range(3))
    await driver.rows(sequence, X[:29], 0)
    fed = len(model.fed)
    with driver.engine.together():
        beside = [driver.submit(each, X[200 + n : 201 + n], n) for n in range(3) for each in (plain, other)]
        came = driver.submit(sequence, step_of(29, 4, branches), 29, branches=branches, guess=guess)
    outcome, *_ = await asyncio.gather(came, *beside)
    assert (outcome.rows, outcome.branches) == (4, ())
    rows = NONE.decode(outcome.payload, outcome.rows, HIDDEN)
    assert sorted(model.fed[fed:]) == [1] * 6 + [4]
    assert np.array_equal(rows, model.alone(X[:33])[-4:])
    assert np.array_equal(await driver.rows(sequence, X[33:34], 33), model.alone(X[:34])[-1:])
    assert driver.engine.memory.scratch._held == 0
    for each in (plain, other, sequence):
        driver.engine.close_sequence(each)


@pytest.mark.parametrize("kind", ["attention", "hybrid"])
async def test_nothing_of_branches_remains(model_of, open_engine, kind):
    """Not in the pools, not in what the session holds."""
    model = model_of("native", kind)
    held = []
    for branches in ((), ((2, 3), (1, 1))):
        driver = open_engine(model)
        sequence = driver.sequence(span=Span(0, len(KINDS[kind])))
        await driver.rows(sequence, X[:61], 0)
        rows = await driver.rows(sequence, step_of(61, 2, branches), 61, branches=branches)
        assert len(rows) == 2 + rows_of(branches)
        load = driver.engine.load()
        pages, states = (load.used_slots, load.reserved_slots), (load.used_states, load.reserved_states)
        held.append((pages, states, sequence.length, sequence.computed))
        driver.engine.close_sequence(sequence)
    assert held[0] == held[1]


@pytest.mark.parametrize("want", [Want.LAST, Want.NOTHING])
async def test_who_does_not_want_all_rows_gets_those_of_the_step(model_of, open_engine, want):
    model = model_of("native", "attention")
    driver = open_engine(model)
    sequence = driver.sequence(span=Span(0, 2))
    branches = ((1, 2),)
    outcome = await driver.submit(sequence, step_of(0, 3, branches), 0, branches=branches, want=want)
    assert isinstance(outcome, StepDone)
    assert outcome.branches == ()
    if want is Want.LAST:
        assert (outcome.rows, outcome.position) == (1, 2)
        row = NONE.decode(outcome.payload, 1, HIDDEN)
        assert np.array_equal(row, model.alone(X[:3])[-1:])
    else:
        assert (outcome.rows, outcome.position) == (0, 3)
    driver.engine.close_sequence(sequence)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["hybrid", "window"])
async def test_rounds_in_flight_that_go_back(model_of, open_engine, kind, seed):
    """Steps with branches sent ahead of their results, and begun again from anywhere in what was sent."""
    rng = random.Random(seed)
    model = model_of("torch", kind)
    driver = open_engine(model)
    span = Span(0, len(KINDS[kind]))
    sequence = driver.sequence(span=span, tokens=400)
    tokens = [rng.randrange(len(X)) for _ in range(rng.randint(1, 70))]
    await driver.rows(sequence, X[tokens], 0)
    forked = 0
    for _ in range(6):
        certain, sent = len(tokens), []
        for _ in range(rng.randint(1, 3)):
            position, chain = len(tokens), rng.randint(1, 5)
            own = [rng.randrange(len(X)) for _ in range(chain)]
            branches = tuple((rng.randint(0, chain), rng.randint(1, 3)) for _ in range(rng.randint(0, 3)))
            guesses = [rng.randrange(len(X)) for _ in range(rows_of(branches))]
            step = X[own + guesses]
            sent.append(
                (X[tokens], step, branches, driver.submit(sequence, step, position, branches=branches))
            )
            tokens = tokens + own
        for before, step, branches, came in sent:
            outcome = await came
            assert isinstance(outcome, StepDone)
            if not outcome.branches:
                step, branches = step[: len(step) - rows_of(branches)], ()
            forked += len(outcome.branches)
            rows = NONE.decode(outcome.payload, outcome.rows, HIDDEN)
            assert np.array_equal(rows, wanted(model, before, step, branches))
        tokens = tokens[: rng.randint(certain, len(tokens))]
    assert forked
    driver.engine.close_sequence(sequence)


async def test_a_state_before_a_step_is_computed_once_for_all_branches(model_of, open_engine):
    """After going back to where no state is: not for each branch again."""
    model = model_of("torch", "hybrid")
    driver = open_engine(model)
    sequence = driver.sequence()
    await driver.rows(sequence, X[:61], 0)
    model.fed.clear()
    branches = ((1, 2), (2, 1))
    step = step_of(50, 2, branches)
    rows = await driver.rows(sequence, step, 50, branches=branches)
    assert np.array_equal(rows, wanted(model, X[:50], step, branches))
    assert model.fed == [18, 2, 3, 3]
    driver.engine.close_sequence(sequence)


async def test_without_room_the_branches_are_left_out(model_of, open_engine):
    """Whatever is promised to sessions stays theirs."""
    model = model_of("native", "attention")
    driver = open_engine(model, slots=12)
    sequence = driver.sequence(tokens=5 * 32, span=Span(0, 2))
    branches = ((1, 1), (2, 1))
    for asked, computed in ((branches[:1], branches[:1]), (branches, ())):
        outcome = await driver.submit(sequence, step_of(0, 2, asked), 0, branches=asked)
        assert isinstance(outcome, StepDone)
        assert (outcome.rows, outcome.branches) == (2 + rows_of(computed), computed)
    other = driver.sequence(tokens=32, span=Span(0, 2))
    assert driver.engine.load().free_slots - driver.engine.load().reserved_slots == 0
    outcome = await driver.submit(sequence, step_of(0, 2, branches[:1]), 0, branches=branches[:1])
    rows = NONE.decode(outcome.payload, outcome.rows, HIDDEN)
    assert np.array_equal(rows, model.alone(X[:2]))
    for each in (sequence, other):
        driver.engine.close_sequence(each)


async def test_branches_that_are_longer_than_the_session_may_be_are_left_out(model_of, open_engine):
    model = model_of("native", "attention")
    driver = open_engine(model)
    sequence = driver.sequence(tokens=4, span=Span(0, 2))
    for branches, left in ((((2, 2),), ((2, 2),)), (((2, 3),), ())):
        outcome = await driver.submit(sequence, step_of(0, 2, branches), 0, branches=branches)
        assert isinstance(outcome, StepDone)
        assert outcome.branches == left
    driver.engine.close_sequence(sequence)


async def test_branches_wait_in_no_more_than_a_part_of_the_pool(model_of, open_engine):
    """However many steps with branches wait, sessions find room beside them."""
    model = model_of("native", "attention")
    driver = open_engine(model, slots=80)
    sequence = driver.sequence(tokens=64, span=Span(0, 2))
    branches = tuple((1, 1) for _ in range(8))
    with driver.engine.together():
        came = [
            driver.submit(sequence, step_of(at, 1, branches, at), at, step=at, branches=branches)
            for at in range(10)
        ]
        load = driver.engine.load()
        assert load.used_slots == 2 + 16  # of two blocks: the session's page, and one for each branch
    outcomes = await asyncio.gather(*came)
    assert [bool(outcome.branches) for outcome in outcomes] == [True, *[False] * 9]
    driver.engine.close_sequence(sequence)


async def test_too_many_rows_are_refused(model_of, open_engine):
    driver = open_engine(model_of("native", "attention"))
    sequence = driver.sequence(span=Span(0, 2))
    most = ((1, MAX_COMPUTED_ROWS - 2),)
    for chain, branches in ((1, ((1, 1), *most)), (MAX_CHAIN_ROWS + 1, ((0, 1),))):
        with pytest.raises(LocalProtocolError, match="there may be"):
            driver.submit(sequence, step_of(0, chain, branches), 0, branches=branches)
    outcome = await driver.submit(sequence, step_of(0, 1, most), 0, branches=most)
    assert isinstance(outcome, StepDone)
    assert outcome.branches == most
    driver.engine.close_sequence(sequence)


async def test_a_payload_of_another_size_is_refused(model_of, open_engine):
    driver = open_engine(model_of("native", "attention"))
    sequence = driver.sequence(span=Span(0, 2))
    step = step_of(0, 2, ((1, 2),))
    outcome = await driver.submit(sequence, step[:3], 0, tokens=2, branches=((1, 2),))
    assert isinstance(outcome, StepFailed)
    assert outcome.code is ErrorCode.BAD_TENSOR
    assert np.array_equal(
        await driver.rows(sequence, step, 0, branches=((1, 2),)),
        wanted(model_of("native", "attention"), X[:0], step, ((1, 2),)),
    )
    driver.engine.close_sequence(sequence)


async def test_a_step_that_is_refused_takes_no_room_for_its_branches(model_of, open_engine, monkeypatch):
    driver = open_engine(model_of("native", "attention"))
    sequence, taken = driver.sequence(span=Span(0, 2)), []
    scheduler = driver.engine._scheduler
    add = scheduler.add

    def noted(key, owner, tokens, deadline, group, again, certain, branches):
        taken.append((tokens, again + branches))
        add(key, owner, tokens, deadline, group, again, certain, branches)

    monkeypatch.setattr(scheduler, "add", noted)
    for position in (0, 9):
        step = step_of(position, 2, ((1, 2),))
        outcome = await driver.submit(sequence, step, position, branches=((1, 2),))
        assert isinstance(outcome, StepFailed) == bool(position)
    assert taken == [(2, 3), (1, 0)]
    driver.engine.close_sequence(sequence)


@pytest.mark.parametrize("kind", ["attention", "hybrid"])
async def test_a_batch_that_fails_costs_only_the_session_to_blame(model_of, open_engine, kind):
    model = model_of("torch", kind)
    driver = open_engine(model)
    span = Span(0, len(KINDS[kind]))
    good, bad = driver.sequence(span=span), driver.sequence(span=span)
    for each in (good, bad):
        await driver.rows(each, X[:40], 0)
    branches = ((1, 2), (2, 1))
    step = step_of(40, 2, branches)
    evil = step.copy()
    evil[-1, 0] = CRASH
    with driver.engine.together():
        came = [driver.submit(each, x, 40, branches=branches) for each, x in ((good, step), (bad, evil))]
    first, second = await asyncio.gather(*came)
    assert isinstance(second, StepFailed)
    assert isinstance(first, StepDone)
    right = wanted(model, X[:40], step, branches)
    assert np.array_equal(NONE.decode(first.payload, first.rows, HIDDEN), right)
    assert np.array_equal(await driver.rows(bad, step, 40, branches=branches), right)
    for each in (good, bad):
        driver.engine.close_sequence(each)


async def test_steps_that_are_dropped_give_their_slots_back(model_of, open_engine):
    driver = open_engine(model_of("native", "attention"))
    sequence = driver.sequence(span=Span(0, 2))
    branches = ((1, 1),)
    with driver.engine.together():
        came = driver.submit(sequence, step_of(0, 1, branches), 0, branches=branches)
        driver.engine.close_sequence(sequence)
    await came
