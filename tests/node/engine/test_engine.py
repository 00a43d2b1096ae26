from __future__ import annotations

import asyncio
import threading
from time import perf_counter_ns

import numpy as np
import pytest

from swarm_node.node.engine.engine import Engine, EngineSettings
from swarm_node.node.engine.jobs import StepDone, StepDropped, StepFailed, StepJob
from swarm_node.shards.layers.kv_pool import KvPool
from swarm_node.shards.native.span import NativeSpan
from swarm_node.shards.torch.span import TorchSpan
from swarm_node.swarm.codecs.int8s import Int8sCodec
from swarm_node.swarm.codecs.kinds import NONE
from swarm_node.swarm.codecs.scales import ScaleTable
from swarm_node.swarm.errors import ErrorCode, LocalProtocolError, UsageError
from swarm_node.swarm.protocol.messages import Want
from swarm_node.swarm.types import Span
from tests.node.engine.driver import Driver
from tests.swarm.codecs.codec_cases import codec_of

ALL = Span(0, 4)


CRASH, OVERFLOW = 666.0, 777.0


class Fragile(NativeSpan):
    """A row that begins with CRASH raises; one that begins with OVERFLOW comes out infinite."""

    def forward(self, x, pieces, pool, span=None):
        if (x[:, 0] == CRASH).any():
            raise RuntimeError("boom")
        overflowed = x[:, 0] == OVERFLOW
        out = super().forward(x, pieces, pool, span)
        out[overflowed] = float("inf")
        return out


def fragile(model: NativeSpan) -> Fragile:
    other = Fragile.__new__(Fragile)
    vars(other).update(vars(model))
    return other


def pool_of(model, slots):
    return model.new_pool(slots, "float32")


@pytest.fixture
async def driver(tiny_span):
    model = fragile(tiny_span())
    engine = Engine(model, pool_of(model, 256), threads=1, settings=EngineSettings(max_batch_tokens=32))
    engine.start()
    yield Driver(engine)
    await engine.stop()


async def test_prompt_in_slices_and_tokens_match_the_plain_forward(driver, plain, hidden_states):
    x = hidden_states(100)
    wanted = plain(driver.engine.model, x)
    sequence = driver.sequence()
    prompt = await driver.rows(sequence, x[:80], 0)  # 32 + 32 + 16 rows
    np.testing.assert_allclose(prompt, wanted[:80], atol=1e-4, rtol=1e-4)
    for position in range(80, 90):
        row = await driver.rows(sequence, x[position : position + 1], position)
        np.testing.assert_allclose(row, wanted[position : position + 1], atol=1e-4, rtol=1e-4)
    last = await driver.rows(sequence, x[90:], 90, want=Want.LAST)
    np.testing.assert_allclose(last, wanted[-1:], atol=1e-4, rtol=1e-4)
    assert driver.engine.load().tokens == 100
    assert driver.engine.queued == 0


async def test_many_sessions_at_once_with_their_own_sub_spans(driver, plain, hidden_states):
    spans = [ALL, Span(1, 3), Span(2, 4), ALL, Span(1, 3)]
    inputs = [hidden_states(20 + i, i) for i in range(len(spans))]
    wanted = [plain(driver.engine.model, x, span) for x, span in zip(inputs, spans, strict=True)]
    sequences = [driver.sequence(span=span) for span in spans]
    prompts = [driver.rows(sequence, x[:15], 0) for sequence, x in zip(sequences, inputs, strict=True)]
    for got, want in zip(await asyncio.gather(*prompts), wanted, strict=True):
        np.testing.assert_allclose(got, want[:15], atol=1e-4, rtol=1e-4)
    for position in range(15, 20):
        steps = [
            driver.rows(sequence, x[position : position + 1], position)
            for sequence, x in zip(sequences, inputs, strict=True)
        ]
        for got, want in zip(await asyncio.gather(*steps), wanted, strict=True):
            np.testing.assert_allclose(got, want[position : position + 1], atol=1e-4, rtol=1e-4)


async def test_waiting_sessions_are_computed_together(driver, hidden_states):
    sequences = [driver.sequence() for _ in range(5)]
    hold = threading.Event()
    held = asyncio.ensure_future(driver.engine.run(lambda: hold.wait(10)))
    await asyncio.sleep(0)
    steps = [driver.submit(sequence, hidden_states(1, i), 0) for i, sequence in enumerate(sequences)]
    assert driver.engine.queued == 5
    hold.set()
    outcomes = await asyncio.gather(*steps)
    await held
    assert [outcome.batch for outcome in outcomes] == [5] * 5
    assert driver.engine.load().batches == 1


async def test_rollback(driver, plain, hidden_states):
    x, other = hidden_states(30), hidden_states(30, 9)
    sequence = driver.sequence()
    await driver.rows(sequence, other, 0)
    await driver.rows(sequence, x[:10], 0)
    got = await driver.rows(sequence, x[10:], 10)
    np.testing.assert_allclose(got, plain(driver.engine.model, x)[10:], atol=1e-4, rtol=1e-4)


async def test_times_add_up(driver, hidden_states):
    began = perf_counter_ns()
    outcome = await driver.submit(driver.sequence(), hidden_states(20), 0, want=Want.NOTHING)
    elapsed_us = (perf_counter_ns() - began) / 1000
    assert outcome.rows == 0
    assert outcome.payload == b""
    assert outcome.position == 20
    assert 0 < outcome.queue_us + outcome.compute_us + outcome.codec_us <= elapsed_us
    assert outcome.compute_us > 0


BAD = {
    "too short": (b"\0" * 12, ErrorCode.BAD_TENSOR),
    "too long": (b"\0" * (64 * 4 * 2 + 4), ErrorCode.BAD_TENSOR),
    "NaN": (np.full((2, 64), float("nan"), np.float32).tobytes(), ErrorCode.BAD_TENSOR),
    "infinite": (np.full((2, 64), float("inf"), np.float32).tobytes(), ErrorCode.BAD_TENSOR),
    "overflows": (np.full((2, 64), OVERFLOW, np.float32).tobytes(), ErrorCode.BAD_TENSOR),
    "crashes": (np.full((2, 64), CRASH, np.float32).tobytes(), ErrorCode.INTERNAL),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_payload_fails_alone_and_leaves_its_session_usable(driver, plain, hidden_states, bad):
    payload, code = BAD[bad]
    x = hidden_states(12)
    wanted = plain(driver.engine.model, x)
    victim, culprit = driver.sequence(), driver.sequence()
    await asyncio.gather(driver.rows(victim, x[:10], 0), driver.rows(culprit, x[:10], 0))
    hold = threading.Event()
    held = asyncio.ensure_future(driver.engine.run(lambda: hold.wait(10)))
    await asyncio.sleep(0)
    fine = driver.rows(victim, x[10:11], 10)
    fine_step = asyncio.ensure_future(fine)
    failing = driver.submit(culprit, None, 10, tokens=2, payload=payload)
    following = driver.submit(culprit, x[11:], 12, step=2)
    await asyncio.sleep(0)
    hold.set()
    failed, after = await failing, await following
    await held
    np.testing.assert_allclose(await fine_step, wanted[10:11], atol=1e-4, rtol=1e-4)
    assert isinstance(failed, StepFailed)
    assert failed.code is code
    assert "boom" not in failed.message
    # What was sent on top of the failed step must not be computed on a hole.
    assert isinstance(after, StepFailed)
    assert after.code is ErrorCode.BAD_STEP
    again = await driver.rows(culprit, x[10:], 10, step=3)
    np.testing.assert_allclose(again, wanted[10:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sound_first", [False, True])
async def test_blocks_that_give_nothing_finite_to_anybody_are_told_once(
    driver, hidden_states, caplog, sound_first
):
    if sound_first:
        await driver.rows(driver.sequence(), hidden_states(2), 0)
    bad = np.full((2, 64), OVERFLOW, np.float32)
    told = []
    for _ in range(3):
        one = driver.sequence()
        for step in (1, 2):  # a session alone may have chosen its input
            failed = await driver.submit(one, bad, 0, step=step)
            assert isinstance(failed, StepFailed)
        told.append(caplog.text.count("event=no_finite_result"))
    assert told == ([0, 0, 0] if sound_first else [0, 1, 1])


async def test_a_failing_prompt_is_reported_once(driver):
    sequence = driver.sequence()
    payload = np.full((100, 64), CRASH, np.float32).tobytes()
    outcome = await driver.submit(sequence, None, 0, tokens=100, payload=payload)
    assert isinstance(outcome, StepFailed)
    await driver.engine.run(lambda: None)
    assert driver.engine.queued == 0
    assert not sequence.steps
    assert sequence.computed == sequence.length == 0


async def test_deadline(driver, hidden_states):
    sequence = driver.sequence()
    late = await driver.submit(sequence, hidden_states(1), 0, deadline_ns=perf_counter_ns() - 1)
    assert isinstance(late, StepFailed)
    assert (late.code, late.retriable) == (ErrorCode.DEADLINE, True)
    await driver.rows(sequence, hidden_states(1), 0, step=2, deadline_ns=perf_counter_ns() + 10**10)


async def test_steps_of_a_closed_session_are_dropped(driver, hidden_states):
    sequence = driver.sequence()
    hold = threading.Event()
    held = asyncio.ensure_future(driver.engine.run(lambda: hold.wait(10)))
    await asyncio.sleep(0)
    steps = [driver.submit(sequence, hidden_states(1), i, step=i) for i in range(3)]
    driver.engine.close_sequence(sequence)
    hold.set()
    assert all(isinstance(outcome, StepDropped) for outcome in await asyncio.gather(*steps))
    await held
    assert driver.engine.load().tokens == 0


async def test_run_hands_back_results_and_errors_of_the_compute_thread(driver):
    name = await driver.engine.run(lambda: threading.current_thread().name)
    assert name == "swarm-node-compute"
    with pytest.raises(ZeroDivisionError):
        await driver.engine.run(lambda: 1 // 0)


async def test_stop_answers_what_waits_and_takes_nothing_more(driver, hidden_states):
    sequence = driver.sequence()
    hold = threading.Event()
    held = asyncio.ensure_future(driver.engine.run(lambda: hold.wait(10)))
    await asyncio.sleep(0)
    stopping = asyncio.ensure_future(driver.engine.stop())
    await asyncio.sleep(0)
    with pytest.raises(LocalProtocolError):
        driver.submit(sequence, hidden_states(1), 0)
    hold.set()
    await asyncio.gather(stopping, held)
    await driver.engine.stop()


async def test_a_table_that_finds_no_memory_is_no_room(driver, monkeypatch):
    def no_memory(*_, **__):
        raise MemoryError("not enough memory")

    monkeypatch.setattr(np, "empty", no_memory)
    assert driver.sequence() is None
    load = driver.engine.load()
    assert (load.sequences, load.used_slots, load.reserved_slots) == (0, 0, 0)


async def test_a_session_that_can_never_be_is_refused(driver):
    engine = driver.engine
    assert engine.could_ever_fit(64 * 32, Span(0, 4))
    assert not engine.could_ever_fit(64 * 32 + 1, Span(0, 4))
    assert not engine.could_ever_fit(1, Span(0, 5))
    assert not engine.could_ever_fit(0, Span(0, 4))
    for tokens, span in ((0, ALL), (10, Span(3, 5))):
        with pytest.raises(LocalProtocolError):
            driver.sequence(tokens, span=span)
    with pytest.raises(UsageError):
        Engine(engine.model, pool_of(engine.model, 3), threads=1)
    with pytest.raises(UsageError):
        EngineSettings(prefill_target_ms=0)


async def test_room_is_reserved_at_open_and_given_back_at_close(driver, hidden_states):
    engine = driver.engine
    assert engine.total_tokens == engine.free_tokens == 2048
    sequences = [
        driver.sequence(1000, span=Span(0, 2)),
        driver.sequence(1000),
    ]  # 32 pages of 2 and of 4 blocks
    assert engine.free_tokens == 2048 - 512 - 1024
    assert driver.sequence(513) is None
    assert engine.load().used_slots == 0
    await driver.rows(sequences[1], hidden_states(33), 0)
    assert engine.load().used_slots == 8
    released = []
    for sequence in sequences:
        sequence.on_released = lambda: released.append(1)
        engine.close_sequence(sequence)
        engine.close_sequence(sequence)
    assert released == [1, 1]
    assert engine.free_tokens == 2048
    assert driver.sequence(513) is not None


async def test_a_closed_session_keeps_its_memory_until_the_device_let_go(driver, hidden_states):
    sequence = driver.sequence()
    released = []
    sequence.on_released = lambda: released.append(driver.engine.load().used_slots)
    hold = threading.Event()
    held = asyncio.ensure_future(driver.engine.run(lambda: hold.wait(10)))
    await asyncio.sleep(0)
    step = driver.submit(sequence, hidden_states(40), 0)
    driver.engine.close_sequence(sequence)
    assert not released
    with pytest.raises(LocalProtocolError):
        driver.submit(sequence, hidden_states(1), 0)
    hold.set()
    await held
    assert isinstance(await step, StepDropped)
    await asyncio.sleep(0)
    assert released == [0]


def chain(text: bytes, pages: int) -> tuple[bytes, ...]:
    return tuple(text + bytes([i]) for i in range(pages))


async def test_a_known_prefix_is_not_computed_again(driver, plain, hidden_states):
    engine, x = driver.engine, hidden_states(100)
    wanted = plain(engine.model, x)
    first = driver.sequence(prefix=chain(b"chat", 3))
    assert first.length == 0
    await driver.rows(first, x[:70], 0)
    # Registered as soon as it was answered: a second session shares with one that still runs.
    second = driver.sequence(prefix=chain(b"chat", 3))
    assert second.length == 64
    np.testing.assert_allclose(await driver.rows(second, x[64:], 64), wanted[64:], atol=1e-4, rtol=1e-4)
    assert engine.load().prefix_hit_tokens == 64
    assert engine.load().used_slots == 4 * (2 + 1 + 2)
    engine.close_sequence(second)
    engine.close_sequence(first, chain(b"chat", 2))
    load = engine.load()
    assert (load.used_slots, load.cached_slots, load.reserved_slots) == (0, 12, 0)
    third = driver.sequence(prefix=chain(b"chat", 3))
    assert third.length == 96  # with the page that the second session completed
    assert driver.sequence(prefix=chain(b"stranger", 3)).length == 0
    assert driver.sequence(96, prefix=chain(b"chat", 3)).length == 64  # at least one token is left to feed
    assert driver.sequence(prefix=chain(b"chat", 3), span=Span(0, 2)).length == 0


async def test_a_prefix_may_be_fed_again_from_anywhere(driver, plain, hidden_states):
    """Another hop knew less of it: the client starts all hops at the smallest."""
    x = hidden_states(100)
    wanted = plain(driver.engine.model, x)
    sequence = driver.sequence(prefix=chain(b"a", 3))
    await driver.rows(sequence, x[:64], 0)
    again = driver.sequence(prefix=chain(b"a", 3))
    assert again.length == 64
    np.testing.assert_allclose(await driver.rows(again, x[40:], 40), wanted[40:], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(await driver.rows(sequence, x[64:], 64), wanted[64:], atol=1e-4, rtol=1e-4)
    assert driver.sequence(prefix=chain(b"a", 3)).length == 96


async def test_pages_that_were_written_again_lose_their_names(driver, plain, hidden_states):
    x, other = hidden_states(64), hidden_states(64, 5)
    sequence = driver.sequence(prefix=chain(b"a", 2))
    await driver.rows(sequence, x[:40], 0)
    await driver.rows(sequence, other[32:], 32)  # not what the chain says
    driver.engine.close_sequence(sequence)
    assert driver.sequence(prefix=chain(b"a", 2)).length == 32


@pytest.mark.parametrize("slots", [8, 16, 24])
@pytest.mark.parametrize("forks", [1, 2])
async def test_a_fork_that_goes_back_at_once_does_not_name_what_it_writes(
    tiny_span, plain, hidden_states, slots, forks
):
    """With 8 slots the fork writes on its parent's own pages, with 16 and 24 on one or two others."""
    model, x, other = tiny_span(), hidden_states(64), hidden_states(64, 5)
    engine = Engine(model, pool_of(model, slots), threads=1)
    engine.start()
    driver = Driver(engine)
    sequence = driver.sequence(64, prefix=chain(b"a", 2))
    await driver.rows(sequence, x, 0)
    for _ in range(forks):
        parent, sequence = sequence, driver.sequence(64, parent=sequence, parent_tokens=64)
        engine.close_sequence(parent)
    got = await driver.rows(sequence, other, 0)
    np.testing.assert_allclose(got, plain(model, other), atol=1e-4, rtol=1e-4)
    engine.close_sequence(sequence)
    again = driver.sequence(64, prefix=chain(b"a", 2))
    at = again.length
    assert at == (32 if slots > 8 else 0)
    np.testing.assert_allclose(
        await driver.rows(again, x[at:], at), plain(model, x)[at:], atol=1e-4, rtol=1e-4
    )
    await engine.stop()


async def test_a_known_prefix_that_others_compute_anew_has_no_names(driver, hidden_states):
    first = driver.sequence(128, prefix=chain(b"a", 3))
    await driver.rows(first, hidden_states(70), 0)
    driver.engine.close_sequence(first)
    second = driver.sequence(128, prefix=chain(b"a", 3))
    second.end_names()
    await driver.rows(second, hidden_states(100, 5), 0)
    assert second.names == ()


async def test_a_prompt_that_is_rewritten_under_way_is_not_cached(driver, hidden_states):
    x = hidden_states(64)
    sequence = driver.sequence(prefix=chain(b"a", 2))
    hold = threading.Event()
    held = asyncio.ensure_future(driver.engine.run(lambda: hold.wait(10)))
    await asyncio.sleep(0)
    steps = [driver.submit(sequence, x, 0), driver.submit(sequence, hidden_states(10, 3), 40, step=2)]
    hold.set()
    await asyncio.gather(held, *steps)
    assert driver.sequence(prefix=chain(b"a", 2)).length == 32


async def test_a_chain_told_while_a_page_is_being_rewritten_does_not_name_it(driver, hidden_states):
    sequence = driver.sequence()
    await driver.rows(sequence, hidden_states(64), 0)
    hold = threading.Event()
    held = asyncio.ensure_future(driver.engine.run(lambda: hold.wait(10)))
    await asyncio.sleep(0)
    step = driver.submit(sequence, hidden_states(10, 3), 40, step=2)
    driver.engine.close_sequence(sequence, chain(b"a", 2))  # of what the client believes to be there by now
    hold.set()
    await asyncio.gather(held, step)
    assert driver.sequence(prefix=chain(b"a", 2)).length == 32


async def test_without_a_prefix_cache_nothing_is_kept(tiny_span, hidden_states):
    model = tiny_span()
    engine = Engine(model, pool_of(model, 64), threads=1, settings=EngineSettings(prefix_cache=False))
    engine.start()
    driver = Driver(engine)
    sequence = driver.sequence(prefix=chain(b"a", 2))
    await driver.rows(sequence, hidden_states(64), 0)
    engine.close_sequence(sequence, chain(b"a", 2))
    assert driver.sequence(prefix=chain(b"a", 2)).length == 0
    assert engine.load().cached_slots == 0
    await engine.stop()


async def test_a_fork_goes_its_own_way(driver, plain, hidden_states):
    x, other = hidden_states(60), hidden_states(60, 8)
    mixed = np.concatenate([x[:45], other[45:]])
    model = driver.engine.model
    parent = driver.sequence()
    await driver.rows(parent, x[:50], 0)
    child = driver.sequence(parent=parent, parent_tokens=45)
    assert child.length == 45
    mine, theirs = await asyncio.gather(
        driver.rows(parent, x[50:], 50, step=2), driver.rows(child, other[45:], 45)
    )
    np.testing.assert_allclose(mine, plain(model, x)[50:], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(theirs, plain(model, mixed)[45:], atol=1e-4, rtol=1e-4)
    driver.engine.close_sequence(parent)
    np.testing.assert_allclose(
        await driver.rows(child, other[59:], 59, step=2), plain(model, mixed)[59:], atol=1e-4, rtol=1e-4
    )
    driver.engine.close_sequence(child)
    assert driver.engine.load().free_slots == 256


async def test_forks_of_what_is_not_settled_are_refused(driver, hidden_states):
    parent = driver.sequence()
    await driver.rows(parent, hidden_states(40), 0)
    step = driver.submit(parent, hidden_states(1), 20, step=2)
    assert parent.settled == 20
    for tokens, span in ((21, ALL), (-1, ALL), (20, Span(0, 2))):
        with pytest.raises(LocalProtocolError):
            driver.sequence(parent=parent, parent_tokens=tokens, span=span)
    assert driver.sequence(parent=parent, parent_tokens=20).length == 20
    await step
    driver.engine.close_sequence(parent)
    with pytest.raises(LocalProtocolError):
        driver.sequence(parent=parent, parent_tokens=1)


async def test_a_step_without_a_page_fails_for_now_and_leaves_no_hole(driver, plain, hidden_states):
    x = hidden_states(70)
    parent = driver.sequence(64)
    await driver.rows(parent, x[:64], 0)
    child = driver.sequence(96, parent=parent, parent_tokens=64)
    hog = driver.sequence(61 * 32)  # all that is left
    assert driver.engine.free_tokens == 0
    refused = driver.submit(child, x[20:30], 20)
    following = driver.submit(child, x[30:31], 30, step=2)
    failed, after = await refused, await following
    assert (failed.code, failed.retriable) == (ErrorCode.OVERLOADED, True)
    assert after.code is ErrorCode.BAD_STEP
    driver.engine.close_sequence(hog)
    again = await driver.rows(child, x[20:], 20, step=3)
    np.testing.assert_allclose(again, plain(driver.engine.model, x)[20:], atol=1e-4, rtol=1e-4)


async def test_a_failed_copy_fails_the_step_and_what_follows(driver, hidden_states, monkeypatch):
    parent = driver.sequence()
    await driver.rows(parent, hidden_states(40), 0)
    child = driver.sequence(parent=parent, parent_tokens=40)

    def no_copy(*_):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(KvPool, "copy_slots", no_copy)
    failed = await driver.submit(child, hidden_states(1), 40)
    assert (failed.code, failed.retriable) == (ErrorCode.INTERNAL, True)
    after = await driver.submit(child, hidden_states(1), 40, step=2)
    assert after.code is ErrorCode.BAD_STEP  # what it held is lost
    await driver.rows(parent, hidden_states(1), 40, step=2)


async def test_sessions_with_their_own_codecs_share_a_batch(driver, plain, hidden_states):
    x = hidden_states(10)
    wanted = plain(driver.engine.model, x)
    kinds = ["none", "bf16", "int8", "none", "fp16", "f8", "int8s"]
    sequences = [driver.sequence(codec=codec) for codec in kinds]
    for sequence, reply in zip(
        sequences, ["int8", "none", "none", "bf16", "none", "int8s", "f8"], strict=True
    ):
        sequence.reply_codec = codec_of(reply, 64)
    hold = threading.Event()
    held = asyncio.ensure_future(driver.engine.run(lambda: hold.wait(10)))
    await asyncio.sleep(0)
    wants = [Want.ALL, Want.LAST, Want.ALL, Want.LAST, Want.NOTHING, Want.ALL, Want.LAST]
    steps = [
        driver.submit(sequence, x[:4], 0, want=want) for sequence, want in zip(sequences, wants, strict=True)
    ]
    hold.set()
    outcomes = await asyncio.gather(held, *steps)
    for sequence, want, outcome in zip(sequences, wants, outcomes[1:], strict=True):
        assert outcome.batch == len(kinds)
        rows = {Want.ALL: 4, Want.LAST: 1, Want.NOTHING: 0}[want]
        assert (outcome.rows, outcome.position) == (rows, 4 - rows)
        got = sequence.reply_codec.decode(outcome.payload, rows, 64)
        np.testing.assert_allclose(got, wanted[4 - rows : 4], atol=0.1, rtol=0.1)


async def test_one_client_s_prompts_do_not_hold_up_another_s_tokens(tiny_span, hidden_states, monkeypatch):
    """A row takes 0.1 ms, slices may take 5: no batch with or between the tokens of a decoding session has
    much more than 50 prompt rows, although thousands are waiting all the time."""
    rows = []

    def slow(_, x, pieces, pool, span=None):
        rows.append(len(x))
        threading.Event().wait(len(x) * 1e-4)
        return x

    monkeypatch.setattr(TorchSpan, "forward", slow)
    model = tiny_span(kernels="torch")
    settings = EngineSettings(max_batch_tokens=512, prefill_target_ms=5)
    engine = Engine(model, pool_of(model, 4 * 140), threads=1, settings=settings)
    engine.start()
    driver = Driver(engine)
    chat = driver.sequence(64, owner="chat")
    prompts = [driver.sequence(2000, owner="prompts") for _ in range(2)]
    await driver.rows(chat, hidden_states(1), 0)
    waiting = [driver.submit(sequence, hidden_states(2000), 0, want=Want.NOTHING) for sequence in prompts]
    for position in range(1, 30):
        await driver.rows(chat, hidden_states(1), position, step=position + 1)
    assert not all(step.done() for step in waiting)
    assert max(rows) <= 65  # the first slice, before anything was measured, and a token
    assert sorted(rows[5:])[len(rows[5:]) // 2] <= 55
    assert sum(rows) >= 29 * 10  # and the prompts go on all the same
    for sequence in prompts:
        engine.close_sequence(sequence)
    await asyncio.gather(*waiting)
    await engine.stop()


async def test_load(driver, hidden_states):
    engine = driver.engine
    idle = engine.load()
    assert (idle.queued, idle.running, idle.tokens_per_s, idle.queue_ms, idle.sequences) == (0, 0, 0, 0, 0)
    sequences = [driver.sequence(32) for _ in range(4)]
    hold = threading.Event()
    held = asyncio.ensure_future(engine.run(lambda: hold.wait(0.05)))
    await asyncio.sleep(0)
    steps = [driver.submit(sequence, hidden_states(1), 0) for sequence in sequences]
    assert engine.load().queued == 4
    await asyncio.gather(held, *steps)
    load = engine.load()
    assert (load.running, load.tokens, load.batches, load.sequences, load.queued) == (4, 4, 1, 4, 0)
    assert load.batch == 4
    assert 0 < load.tokens_per_s <= 4
    assert load.queue_ms >= 4  # a tenth of the wait: an average
    assert load.total_tokens - load.free_tokens == 4 * 32
    assert load.free_slots + load.used_slots + load.cached_slots == load.total_slots == 256


async def test_a_callback_that_fails_harms_nobody_else(driver, hidden_states):
    sequence, other = driver.sequence(), driver.sequence()

    def fails(*_):
        raise ZeroDivisionError

    hold = threading.Event()
    held = asyncio.ensure_future(driver.engine.run(lambda: hold.wait(10)))
    await asyncio.sleep(0)
    payload = NONE.encode(hidden_states(1))
    driver.engine.submit(StepJob(sequence, 1, 0, 1, Want.ALL, payload, perf_counter_ns(), fails))
    fine = driver.submit(other, hidden_states(1), 0)
    sequence.on_released = fails
    driver.engine.close_sequence(sequence)
    hold.set()
    assert isinstance(await fine, StepDone)
    await held
    assert driver.engine.load().sequences == 1


async def in_thread_and_here(driver, x, codec="none"):
    """The tokens of ``x`` one by one, each with whether it was computed in this thread."""
    engine, here, rows = driver.engine, [], []
    forward = engine.model.forward
    engine.model.forward = lambda *args: here.append(threading.current_thread()) or forward(*args)
    sequence = engine.open_sequence("peer", ALL, 256, codec_of(codec, 64), codec_of(codec, 64))
    for position in range(len(x)):
        outcome = await driver.submit(sequence, x[position : position + 1], position)
        rows.append(bytes(outcome.payload))
        with engine._device:  # as if the next token took its time: the thread rests by then
            pass
    del engine.model.forward
    engine.close_sequence(sequence)
    return rows, [thread is threading.current_thread() for thread in here]


@pytest.mark.parametrize("codec", ["none", "int8"])
async def test_quick_steps_that_are_alone_are_computed_where_they_come_in(driver, hidden_states, codec):
    x = hidden_states(40)
    driver.engine.model.any_thread = False
    wanted, here = await in_thread_and_here(driver, x, codec)
    assert not any(here)
    driver.engine.model.any_thread = True
    got, here = await in_thread_and_here(driver, x, codec)
    assert got == wanted
    assert not here[0]  # other sessions might be stepping, too
    assert any(here)
    assert driver.engine.load().tokens == 80


async def test_steps_that_are_slow_or_not_alone_go_to_the_thread(driver, hidden_states, monkeypatch):
    x = hidden_states(20)
    await in_thread_and_here(driver, x)
    here = []
    forward = driver.engine.model.forward
    model = driver.engine.model
    model.forward = lambda *args: here.append(threading.current_thread()) or forward(*args)
    a, b = driver.sequence(), driver.sequence()
    for position in range(5):
        await asyncio.gather(*(driver.rows(each, x[position : position + 1], position) for each in (a, b)))
    await driver.rows(a, x[5:7], 5)
    monkeypatch.setattr("swarm_node.node.engine.engine.LONGEST_HERE_NS", 0)
    for position in range(7, 12):
        await driver.rows(a, x[position : position + 1], position)
    assert threading.current_thread() not in here


async def test_what_is_wrong_with_a_step_that_is_alone_is_told_as_always(driver, hidden_states):
    x = hidden_states(20)
    sequence = driver.sequence()
    for position in range(10):
        await driver.rows(sequence, x[position : position + 1], position)
    row = x[10:11]
    short = await driver.submit(sequence, row, 10, payload=b"short", tokens=1)
    assert short.code is ErrorCode.BAD_TENSOR
    for bad, code in (
        (np.nan, ErrorCode.BAD_TENSOR),
        (CRASH, ErrorCode.INTERNAL),
        (OVERFLOW, ErrorCode.BAD_TENSOR),
    ):
        wrong = row.copy()
        wrong[0, 0] = bad
        outcome = await driver.submit(sequence, wrong, 10, payload=wrong.tobytes())
        assert outcome.code is code
    late = await driver.submit(sequence, row, 10, deadline_ns=1)
    assert late.code is ErrorCode.DEADLINE
    hole = await driver.submit(sequence, row, 15)
    assert hole.code is ErrorCode.BAD_STEP
    assert (await driver.rows(sequence, row, 10)).shape == (1, 64)


HARMFUL = Int8sCodec.of(ScaleTable(bytes([0] * 40 + [30] * 24)))


@pytest.mark.parametrize("tokens", [12, 70, 1])
async def test_a_table_that_spoils_what_goes_on_is_refused(driver, hidden_states, tokens):
    """At the session's first row, in slices or one by one; others in the batch go on."""
    victim, other = driver.sequence(), driver.sequence()
    victim.reply_codec = HARMFUL
    other.reply_codec = codec_of("int8s", 64)
    x = hidden_states(max(tokens, 3))
    outcomes = []
    for at in range(0, len(x), tokens):
        steps = [driver.submit(each, x[at : at + tokens], at, step=at + 1) for each in (victim, other)]
        outcomes.append(await asyncio.gather(*steps))
    spoilt, fine = zip(*outcomes, strict=True)
    assert all(isinstance(each, StepFailed) for each in spoilt)
    assert spoilt[0].code is ErrorCode.UNSUPPORTED_CODEC
    assert "table of scales" in spoilt[0].message
    assert all(isinstance(each, StepDone) for each in fine)


async def test_a_table_is_looked_at_where_the_row_that_is_wanted_is(driver, hidden_states):
    """Of a prompt whose last row alone goes on, that row."""
    sequence = driver.sequence()
    sequence.reply_codec = HARMFUL
    x = hidden_states(70)
    nothing = await driver.submit(sequence, x, 0, want=Want.NOTHING)
    assert isinstance(nothing, StepDone)
    said = await driver.submit(sequence, x, 0, step=2, want=Want.LAST)
    assert said.code is ErrorCode.UNSUPPORTED_CODEC
