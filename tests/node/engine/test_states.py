"""Sessions over blocks that keep a state: whatever they go back to, they get what a session alone gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from swarm_node.node.engine.engine import Engine, EngineSettings
from swarm_node.node.engine.jobs import StepDone, StepFailed
from swarm_node.shards.formats.blocks.block import BlockConfig
from swarm_node.shards.formats.blocks.state import ShortConvConfig
from swarm_node.shards.layers.kv_pool import BatchSlice
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.shards.torch.span import TorchSpan
from swarm_node.swarm.codecs.kinds import INT8
from swarm_node.swarm.errors import ErrorCode, LocalProtocolError
from swarm_node.swarm.figures import MOST_AHEAD_OF_STATES
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.protocol.messages import Want
from swarm_node.swarm.types import Span
from tests.node.engine.driver import Driver
from tests.shards.models.block_cases import CONTEXT, attention, block, checkpoint_of
from tests.shards.models.state_cases import delta, kept, mamba

BLOCKS = (kept(delta()), block(attention(window=40)), block(state=mamba()), block())
"""A state alone, a window, a state beside attention, and attention to all."""
CRASH = 666.0
ALL = Span(0, 4)
X = np.random.default_rng(3).standard_normal((1400, 64), np.float32)


class Model(TorchSpan):
    """A row that begins with CRASH raises, once the blocks have written. ``fed`` are the slices that came."""

    fed: list[BatchSlice]

    def forward(self, x: np.ndarray, slices: Any, pool: Any, span: Span | None = None) -> np.ndarray:
        self.fed += slices
        out = super().forward(x, slices, pool, span)
        if (x[:, 0] == CRASH).any():
            raise RuntimeError("boom")
        return out


def model_of(blocks: tuple[BlockConfig, ...], *, deterministic: bool = True) -> Model:
    options = LoadOptions(dtype="float32", quantize="none", kernels="torch", deterministic=deterministic)
    loaded = load_backend(checkpoint_of(blocks), ALL, options)
    made = Model.__new__(Model)
    vars(made).update(vars(loaded))
    made.fed = []
    return made


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of(BLOCKS)


@pytest.fixture
async def open_engine(model: Model) -> AsyncIterator[Callable[..., Driver]]:
    engines = []

    def open_(model: Model = model, states: int = 80) -> Driver:
        settings = EngineSettings(max_batch_tokens=64)
        engine = Engine(model, model.new_pool(800, "float32", states), threads=1, settings=settings)
        engine.start()
        engines.append(engine)
        return Driver(engine)

    yield open_
    for engine in engines:
        await engine.stop()
        load = engine.load()
        assert (load.sequences, load.used_slots, load.reserved_slots) == (0, 0, 0)
        assert (load.used_states, load.reserved_states) == (0, 0)


def alone(model: Model, x: np.ndarray) -> np.ndarray:
    """The rows of a session that was fed ``x`` and nothing else."""
    memory = OwnMemory(model, "float32", len(x))
    return TorchSpan.forward(model, x, [memory.slice(0, len(x))], memory.pool)


@pytest.mark.parametrize("prompt", [3, 31, 32, 50])
async def test_a_draft_is_taken_back_by_any_number_of_tokens(model, open_engine, prompt):
    driver = open_engine()
    sequence = driver.sequence(tokens=256)
    await driver.rows(sequence, X[:prompt], 0)
    for kept_guesses in (0, 1, 15, 32):
        await driver.rows(sequence, X[300:333], prompt)
        model.fed.clear()
        row = await driver.rows(sequence, X[400:401], prompt + kept_guesses)
        whole = np.concatenate([X[:prompt], X[300 : 300 + kept_guesses], X[400:401]])
        assert np.array_equal(row[0], alone(model, whole)[-1])
        assert sum(each.count for each in model.fed) <= 32  # a page at most is fed again
        await driver.rows(sequence, X[prompt - 1 : prompt], prompt - 1)
    driver.engine.close_sequence(sequence)


@pytest.mark.parametrize("prompt", [3, 31, 32, 50, 64])
async def test_a_draft_of_many_steps_is_taken_back_while_they_wait(model, open_engine, prompt):
    """As far as a client sends ahead; where a guess near its beginning was wrong, few rows are fed again."""
    driver = open_engine()
    sequence = driver.sequence(tokens=512)
    tokens = X[:prompt]
    await driver.rows(sequence, tokens, 0)
    for kept_guesses in (2, MOST_AHEAD_OF_STATES - 2, 0, 33, 5):
        guesses = X[300 : 300 + MOST_AHEAD_OF_STATES]
        starts = range(0, len(guesses), 8)
        waiting = [driver.submit(sequence, guesses[at : at + 8], len(tokens) + at) for at in starts]
        await waiting[kept_guesses // 8]
        tokens = np.concatenate([tokens, guesses[: kept_guesses + 1], X[400:402]])
        row = await driver.rows(sequence, tokens[-2:], len(tokens) - 2)
        assert np.array_equal(row, alone(model, tokens)[-2:])
        assert all(isinstance(each, StepDone) for each in await asyncio.gather(*waiting))
        assert model.fed[-1].count - 2 <= min(31, kept_guesses + 3)  # and the step before the draft
    driver.engine.close_sequence(sequence)


@pytest.mark.parametrize("states", [8, 80])
async def test_of_a_draft_that_is_partly_wrong_the_accepted_rows_are_fed_again(model, open_engine, states):
    """Where there is room for one more state of the session; else all from the border of the page on."""
    driver = open_engine(states=states)
    sequence = driver.sequence(tokens=256)
    tokens, accepted = X[:70], 0
    await driver.rows(sequence, tokens, 0)
    for kept_guesses in (2, 0, 5, 3, 1, 0):
        position, border = len(tokens), len(tokens) - len(tokens) % 32
        model.fed.clear()
        step = np.concatenate([X[500 + position :][: kept_guesses + 1], X[300:304]])
        rows = await driver.rows(sequence, step, position)
        wanted = alone(model, np.concatenate([tokens, step]))
        assert np.array_equal(rows, wanted[position:])
        again = accepted if states > 8 else position - border if accepted else 0
        assert [each.count for each in model.fed] == [again + len(step)]
        accepted = kept_guesses + 1
        tokens = np.concatenate([tokens, step[:accepted]])
    model.fed.clear()
    await driver.rows(sequence, X[900:901], len(tokens))  # and a token alone
    assert [each.count for each in model.fed] == [(1 if states > 8 else len(tokens) - 64) + 1]
    await driver.rows(sequence, X[901:902], len(tokens) + 1)
    assert driver.engine.load().used_states == 2 * 3  # as before the drafts
    driver.engine.close_sequence(sequence)


async def test_rows_that_are_fed_again_count_in_the_budget_of_a_batch(model, open_engine, monkeypatch):
    """Those from where a state was saved, where one was."""
    driver = open_engine(states=160)
    sequences = [driver.sequence(tokens=64) for _ in range(8)]
    for sequence in sequences:
        await driver.rows(sequence, X[:29], 0)
    batches: list[int] = []

    def forward(x: np.ndarray, *rest: Any) -> np.ndarray:
        batches.append(len(x))
        return TorchSpan.forward(model, x, *rest)

    async def step(position: int) -> list[int]:
        """The rows of the batches that were computed for one step of each session."""
        batches.clear()
        with driver.engine.together():
            steps = [driver.submit(sequence, X[40:42], position) for sequence in sequences]
        await asyncio.gather(*steps)
        return batches

    monkeypatch.setattr(model, "forward", forward)
    assert await step(28) == [2 * 30] * 4
    assert await step(28) == [8 * 2]
    assert await step(29) == [8 * 3]
    assert await step(31) == [8 * 2]
    for sequence in sequences:
        driver.engine.close_sequence(sequence)


async def test_what_the_client_goes_on_with_is_not_fed_again(model, open_engine):
    driver = open_engine()
    sequence = driver.sequence(tokens=256)
    model.fed.clear()
    await driver.rows(sequence, X[:45], 0)
    for position in range(45, 70):
        await driver.rows(sequence, X[position : position + 1], position)
    assert [each.count for each in model.fed] == [45] + [1] * 25
    driver.engine.close_sequence(sequence)


@pytest.mark.parametrize("start", [0, 64, 75])
async def test_a_long_step_is_taken_back_to_its_beginning_and_no_further(open_engine, start):
    model = model_of((BLOCKS[0], BLOCKS[2]) * 2)
    driver = open_engine(model)
    sequence = driver.sequence(tokens=512)
    if start:
        await driver.rows(sequence, X[:start], 0)
    await driver.rows(sequence, X[start : start + 300], start)
    row = await driver.rows(sequence, X[500:501], start)
    assert np.array_equal(row[0], alone(model, np.concatenate([X[:start], X[500:501]]))[-1])
    await driver.rows(sequence, X[start + 1 : start + 300], start + 1)
    lost = await driver.submit(sequence, X[:1], start + 150)
    assert isinstance(lost, StepFailed)
    assert (lost.code, lost.retriable) == (ErrorCode.CACHE_LOST, True)
    assert "no state" in lost.message
    driver.engine.close_sequence(sequence)


async def test_after_a_failed_step_the_next_one_begins_at_the_border(model, open_engine):
    driver = open_engine()
    sequence, other = driver.sequence(tokens=512), driver.sequence(tokens=512)
    await driver.rows(sequence, X[:150], 0)
    await driver.rows(other, X[:77], 0)
    bad = X[150:280].copy()
    bad[100, 0] = CRASH  # in the second or third of its batches
    failed = await driver.submit(sequence, bad, 150)
    assert isinstance(failed, StepFailed)
    hole = await driver.submit(sequence, X[200:201], 200)
    assert isinstance(hole, StepFailed)
    assert hole.code is ErrorCode.BAD_STEP
    row = await driver.rows(sequence, X[150:152], 150)
    assert np.array_equal(row[1], alone(model, X[:152])[-1])
    # Of two in a batch, one is to blame; the other one's state had been written, and is not used.
    bad[0, 0] = CRASH
    with driver.engine.together():
        failing, passing = driver.submit(sequence, bad[:1], 152), driver.submit(other, X[77:78], 77)
    assert isinstance(await failing, StepFailed)
    done = await passing
    assert isinstance(done, StepDone)
    wanted = alone(model, X[:78])[-1]
    assert np.array_equal(np.frombuffer(done.payload, np.float32), wanted)
    again = await driver.rows(sequence, X[152:153], 152)
    assert np.array_equal(again[0], alone(model, X[:153])[-1])
    for each in (sequence, other):
        driver.engine.close_sequence(each)


@pytest.mark.parametrize("shared", [40, 64, 71])
async def test_a_fork_within_a_page_begins_with_its_parents_rows(model, open_engine, shared):
    driver = open_engine()
    parent = driver.sequence(tokens=256)
    await driver.rows(parent, X[:71], 0)
    going_on = [driver.submit(parent, X[71:72], 71), driver.submit(parent, X[72:120], 72)]
    child = driver.sequence(tokens=256, parent=parent, parent_tokens=shared)
    going_on.append(driver.submit(parent, X[500:501], 120))
    row = await driver.rows(child, X[600:603], shared)
    assert np.array_equal(row[2], alone(model, np.concatenate([X[:shared], X[600:603]]))[-1])
    last = (await asyncio.gather(*going_on))[-1]
    wanted = alone(model, np.concatenate([X[:120], X[500:501]]))[-1]
    assert np.array_equal(np.frombuffer(last.payload, np.float32), wanted)
    driver.engine.close_sequence(parent)
    grandchild = driver.sequence(tokens=256, parent=child, parent_tokens=shared + 1)
    driver.engine.close_sequence(child)
    row = await driver.rows(grandchild, X[700:701], shared + 1)
    assert np.array_equal(row[0], alone(model, np.concatenate([X[:shared], X[600:601], X[700:701]]))[-1])
    driver.engine.close_sequence(grandchild)


async def test_a_fork_where_no_state_is_held_is_refused(open_engine):
    driver = open_engine()
    parent = driver.sequence(tokens=512)
    await driver.rows(parent, X[:400], 0)
    assert [tokens for tokens in (400, 380, 300, 0) if parent.keeps(tokens, 512)] == [400, 380]
    with pytest.raises(LocalProtocolError):
        driver.sequence(tokens=512, parent=parent, parent_tokens=300)
    driver.engine.close_sequence(parent)


@pytest.mark.parametrize("chunk", [512, 300])
async def test_prompts_that_share_a_beginning_find_a_state_near_the_place_where_they_differ(
    open_engine, chunk
):
    model = model_of((kept(ShortConvConfig(64, 3)), block()) * 2)
    driver = open_engine(model, 400)
    names = tuple(bytes([number]) for number in range(40))
    first = driver.sequence(tokens=1400, prefix=names)
    steps = [driver.submit(first, X[at : min(1290, at + chunk)], at) for at in range(0, 1290, chunk)]
    await asyncio.gather(*steps)
    driver.engine.close_sequence(first, names)
    other = names[:35] + tuple(bytes([number, 1]) for number in range(5))
    for prefix, known in ((names, 1280), (other, 1024), (names[:20], 512), (names[:15], 0)):
        sequence = driver.sequence(tokens=1400, prefix=prefix)
        assert sequence.length == known
        row = await driver.rows(sequence, X[1300:1302], known)
        assert np.array_equal(row[1], alone(model, np.concatenate([X[:known], X[1300:1302]]))[-1])
        driver.engine.close_sequence(sequence)
    # A hop that knows more than another one begins where that one does, if there is a state.
    for position, code in ((1024, None), (512, None), (1000, ErrorCode.CACHE_LOST)):
        sequence = driver.sequence(tokens=1400, prefix=names)
        outcome = await driver.submit(sequence, X[position : position + 1], position, want=Want.LAST)
        assert (outcome.code if isinstance(outcome, StepFailed) else None) == code
        driver.engine.close_sequence(sequence)


@pytest.mark.parametrize("pages", [15, 16, 17])
async def test_a_conversation_is_known_up_to_its_end(model, open_engine, pages):
    """Also where its last page has a mark of the session's own."""
    driver = open_engine()
    names = tuple(bytes([number]) for number in range(pages))
    first = driver.sequence(tokens=600, prefix=names[:1])
    await driver.rows(first, X[: pages * PAGE_TOKENS], 0)
    driver.engine.close_sequence(first, names)
    sequence = driver.sequence(tokens=600, prefix=names)
    assert sequence.length == pages * PAGE_TOKENS
    driver.engine.close_sequence(sequence)


@pytest.mark.parametrize("tables", [0, 1])
async def test_a_session_whose_tables_find_no_memory_takes_nothing(open_engine, monkeypatch, tables):
    """Those of its pages, or only those of its states."""
    driver = open_engine()
    memory, parent = driver.engine.memory, driver.sequence(tokens=256)
    await driver.rows(parent, X[:70], 0)
    before = [(pool.available, pool.used) for pool in (memory.pages, memory.states)]
    for origin in ({}, {"parent": parent, "parent_tokens": 70}):
        made = [np.zeros((4, 8), np.int32)] * tables

        def no_memory(*_: Any, made: list[np.ndarray] = made) -> np.ndarray:
            if not made:
                raise MemoryError("not enough memory")
            return made.pop()

        with monkeypatch.context() as patched:
            patched.setattr(np, "empty", no_memory)
            assert driver.sequence(tokens=256, **origin) is None
        assert [(pool.available, pool.used) for pool in (memory.pages, memory.states)] == before
    driver.engine.close_sequence(parent)
    with pytest.raises(LocalProtocolError):
        driver.sequence(tokens=256, parent=parent, parent_tokens=70)


async def test_what_is_told_to_be_free_is_free(open_engine):
    driver = open_engine(states=20)
    engine = driver.engine
    assert engine.total_tokens == engine.free_tokens == 2 * CONTEXT + 64  # 8 states each, and two pages'
    sessions = [driver.sequence(tokens=200) for _ in range(2)]
    assert None not in sessions
    assert engine.free_tokens == 64
    assert driver.sequence(tokens=65) is None
    short = driver.sequence(tokens=64)
    assert engine.free_tokens == 0
    assert driver.sequence(tokens=1) is None
    assert engine.memory.cells_of(200, ALL) * 2 <= engine.memory.total_cells
    assert engine.memory.free_cells == 0
    for each in (*sessions, short):
        engine.close_sequence(each)
    assert engine.free_tokens == engine.total_tokens


async def test_a_token_that_is_alone_is_computed_where_it_comes_in(model, open_engine, monkeypatch):
    monkeypatch.setattr(Model, "any_thread", True)
    driver = open_engine()
    engine = driver.engine
    sequence = driver.sequence(tokens=256)
    await driver.rows(sequence, X[:60], 0)
    here = 0
    for position in range(60, 100):
        await engine.run(lambda: None)
        await asyncio.to_thread(engine._device.acquire)  # until the thread waits again
        engine._device.release()
        engine._lone_ns = 0  # however slow this machine is now
        future = driver.submit(sequence, X[position : position + 1], position)
        here += future.done()
        await future
        if position % 7 == 0:  # a guess that was wrong
            await driver.rows(sequence, X[900:903], position + 1)
    last = await driver.rows(sequence, X[100:101], 100)
    assert np.array_equal(last[0], alone(model, X[:101])[-1])
    assert here == 35  # all but five that begin at a border, with rows that came before
    engine.close_sequence(sequence)


async def test_rows_come_again_as_they_came(model, open_engine):
    """In eight bits, of a step that a frame shares with others."""
    driver = open_engine()
    sequence = driver.engine.open_sequence("peer", ALL, 256, INT8, INT8)
    payload = memoryview(bytearray(INT8.encode(X[:60])))
    size = INT8.row_bytes(64)
    await driver.submit(sequence, X[:40], 0, payload=payload[: 40 * size])
    await driver.submit(sequence, X[40:60], 40, payload=payload[40 * size :])
    payload[:] = bytes(len(payload))  # the frame's memory is used again
    again = await driver.submit(sequence, X[50:51], 50, payload=INT8.encode(X[50:51]))
    wanted = INT8.encode(alone(model, INT8.decode(INT8.encode(X[:51]), 51, 64))[-1:])
    assert bytes(again.payload) == bytes(wanted)
    driver.engine.close_sequence(sequence)


async def test_a_prompt_under_way_leaves_room_for_the_sessions_of_others(open_engine):
    """What is kept for names is nobody's quota: one long prompt must not take what others' sessions need."""
    model = model_of((kept(ShortConvConfig(64, 3)), block()) * 2, deterministic=False)
    driver = open_engine(model, 2 * 16)
    memory, names = driver.engine.memory, tuple(bytes([number]) for number in range(40))
    first = driver.sequence(tokens=1400, prefix=names)
    fed = [driver.submit(first, X, 0, want=Want.NOTHING) for _ in range(6)]  # again and again
    assert memory.free_state_sessions == 2
    other = driver.sequence(tokens=300, owner="another")
    assert other is not None
    await asyncio.gather(*fed)
    driver.engine.close_sequence(other)
    assert memory.free_state_sessions == 3  # also while the first one rests
    driver.engine.close_sequence(first)


async def test_a_step_that_is_refused_looks_up_few_names(open_engine, monkeypatch):
    """Peers may send thousands of them a second, and the event loop looks."""
    driver = open_engine(model_of((kept(ShortConvConfig(64, 3)), block()) * 2, deterministic=False))
    cache, looked = driver.engine.memory.state_names, []
    names = tuple(number.to_bytes(4) for number in range(200))
    sequence = driver.sequence(tokens=len(names) * 32, prefix=names)
    for start in range(0, 1280, 64):
        await driver.rows(sequence, X[start : start + 64], start)
    find = cache.ends
    monkeypatch.setattr(
        cache, "ends", lambda *args, **more: looked.append(len(args[2])) or find(*args, **more)
    )
    refused = await driver.submit(sequence, X[:1], 1100)
    assert isinstance(refused, StepFailed)
    assert refused.holds == 1024
    assert sum(looked) < 10
    driver.engine.close_sequence(sequence)
