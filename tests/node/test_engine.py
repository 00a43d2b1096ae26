from __future__ import annotations

import asyncio
import threading
from time import perf_counter_ns

import pytest
import torch

from swarm_node.node.engine import Engine
from swarm_node.node.jobs import StepDone, StepDropped, StepFailed, StepJob
from swarm_node.shards.span_model import SpanModel
from swarm_node.swarm import codecs
from swarm_node.swarm.errors import ErrorCode, LocalProtocolError
from swarm_node.swarm.messages import Want
from swarm_node.swarm.types import Span

ALL = Span(0, 4)


CRASH, OVERFLOW = 666.0, 777.0


class Fragile(SpanModel):
    """A row that begins with CRASH raises; one that begins with OVERFLOW comes out infinite."""

    __slots__ = ()

    def forward(self, x, cos, sin, attend, span=None):
        if (x[:, 0] == CRASH).any():
            raise RuntimeError("boom")
        overflowed = x[:, 0] == OVERFLOW
        out = super().forward(x, cos, sin, attend, span)
        out[overflowed] = float("inf")
        return out


def fragile(model: SpanModel) -> Fragile:
    other = Fragile.__new__(Fragile)
    for name in SpanModel.__slots__:
        setattr(other, name, getattr(model, name))
    return other


class Driver:
    """Submits steps and waits for their outcomes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def submit(self, lane, x, position, *, step=1, want=Want.ALL, payload=None, tokens=None, deadline_ns=0):
        future = asyncio.get_running_loop().create_future()
        self.engine.submit(
            StepJob(
                lane=lane,
                step=step,
                position=position,
                tokens=tokens or len(x),
                want=want,
                payload=codecs.encode(lane.codec, x) if payload is None else payload,
                arrived_ns=perf_counter_ns(),
                done=lambda _, outcome: future.set_result(outcome),
                deadline_ns=deadline_ns,
            )
        )
        return future

    async def rows(self, *args, **more):
        outcome = await self.submit(*args, **more)
        assert isinstance(outcome, StepDone), outcome
        return codecs.decode("none", outcome.payload, outcome.rows, 64)

    def lane(self, tokens=256, span=ALL, codec="none"):
        return self.engine.open_lane(span, tokens, codec, "none")


@pytest.fixture
async def driver(tiny_span):
    engine = Engine(fragile(tiny_span()), threads=1, max_batch_tokens=32)
    engine.start()
    yield Driver(engine)
    await engine.stop()


async def test_prompt_in_slices_and_tokens_match_the_plain_forward(driver, plain, hidden_states):
    x = hidden_states(100)
    wanted = plain(driver.engine.model, x)
    lane = driver.lane()
    prompt = await driver.rows(lane, x[:80], 0)  # 32 + 32 + 16 rows
    torch.testing.assert_close(prompt, wanted[:80], atol=1e-4, rtol=1e-4)
    for position in range(80, 90):
        row = await driver.rows(lane, x[position : position + 1], position)
        torch.testing.assert_close(row, wanted[position : position + 1], atol=1e-4, rtol=1e-4)
    last = await driver.rows(lane, x[90:], 90, want=Want.LAST)
    torch.testing.assert_close(last, wanted[-1:], atol=1e-4, rtol=1e-4)
    assert driver.engine.statistics().tokens == 100
    assert driver.engine.queued == 0


async def test_many_sessions_at_once_with_their_own_sub_spans(driver, plain, hidden_states):
    spans = [ALL, Span(1, 3), Span(2, 4), ALL, Span(1, 3)]
    inputs = [hidden_states(20 + i, i) for i in range(len(spans))]
    wanted = [plain(driver.engine.model, x, span) for x, span in zip(inputs, spans, strict=True)]
    lanes = [driver.lane(span=span) for span in spans]
    prompts = [driver.rows(lane, x[:15], 0) for lane, x in zip(lanes, inputs, strict=True)]
    for got, want in zip(await asyncio.gather(*prompts), wanted, strict=True):
        torch.testing.assert_close(got, want[:15], atol=1e-4, rtol=1e-4)
    for position in range(15, 20):
        steps = [
            driver.rows(lane, x[position : position + 1], position)
            for lane, x in zip(lanes, inputs, strict=True)
        ]
        for got, want in zip(await asyncio.gather(*steps), wanted, strict=True):
            torch.testing.assert_close(got, want[position : position + 1], atol=1e-4, rtol=1e-4)


async def test_waiting_sessions_are_computed_together(driver, hidden_states):
    lanes = [driver.lane() for _ in range(5)]
    hold = threading.Event()
    held = asyncio.ensure_future(driver.engine.run(lambda: hold.wait(10)))
    await asyncio.sleep(0)
    steps = [driver.submit(lane, hidden_states(1, i), 0) for i, lane in enumerate(lanes)]
    assert driver.engine.queued == 5
    hold.set()
    outcomes = await asyncio.gather(*steps)
    await held
    assert [outcome.batch for outcome in outcomes] == [5] * 5
    assert driver.engine.statistics().batches == 1


async def test_rollback(driver, plain, hidden_states):
    x, other = hidden_states(30), hidden_states(30, 9)
    lane = driver.lane()
    await driver.rows(lane, other, 0)
    await driver.rows(lane, x[:10], 0)
    got = await driver.rows(lane, x[10:], 10)
    torch.testing.assert_close(got, plain(driver.engine.model, x)[10:], atol=1e-4, rtol=1e-4)


async def test_times_add_up(driver, hidden_states):
    began = perf_counter_ns()
    outcome = await driver.submit(driver.lane(), hidden_states(20), 0, want=Want.NOTHING)
    elapsed_us = (perf_counter_ns() - began) / 1000
    assert outcome.rows == 0
    assert outcome.payload == b""
    assert outcome.position == 20
    assert 0 < outcome.queue_us + outcome.compute_us + outcome.codec_us <= elapsed_us
    assert outcome.compute_us > 0


BAD = {
    "too short": (b"\0" * 12, ErrorCode.BAD_TENSOR),
    "too long": (b"\0" * (64 * 4 * 2 + 4), ErrorCode.BAD_TENSOR),
    "NaN": (torch.full((2, 64), float("nan")).numpy().tobytes(), ErrorCode.BAD_TENSOR),
    "infinite": (torch.full((2, 64), float("inf")).numpy().tobytes(), ErrorCode.BAD_TENSOR),
    "overflows": (torch.full((2, 64), OVERFLOW).numpy().tobytes(), ErrorCode.BAD_TENSOR),
    "crashes": (torch.full((2, 64), CRASH).numpy().tobytes(), ErrorCode.INTERNAL),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_payload_fails_alone_and_leaves_its_session_usable(driver, plain, hidden_states, bad):
    payload, code = BAD[bad]
    x = hidden_states(12)
    wanted = plain(driver.engine.model, x)
    victim, culprit = driver.lane(), driver.lane()
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
    torch.testing.assert_close(await fine_step, wanted[10:11], atol=1e-4, rtol=1e-4)
    assert isinstance(failed, StepFailed)
    assert failed.code is code
    assert "boom" not in failed.message
    # What was sent on top of the failed step must not be computed on a hole.
    assert isinstance(after, StepFailed)
    assert after.code is ErrorCode.BAD_STEP
    again = await driver.rows(culprit, x[10:], 10, step=3)
    torch.testing.assert_close(again, wanted[10:], atol=1e-4, rtol=1e-4)


async def test_a_failing_prompt_is_reported_once(driver):
    lane = driver.lane()
    payload = torch.full((100, 64), CRASH).numpy().tobytes()
    outcome = await driver.submit(lane, None, 0, tokens=100, payload=payload)
    assert isinstance(outcome, StepFailed)
    await driver.engine.run(lambda: None)
    assert driver.engine.queued == 0
    assert not lane.steps
    assert lane.kv.length == 0


async def test_deadline(driver, hidden_states):
    lane = driver.lane()
    late = await driver.submit(lane, hidden_states(1), 0, deadline_ns=perf_counter_ns() - 1)
    assert isinstance(late, StepFailed)
    assert (late.code, late.retriable) == (ErrorCode.DEADLINE, True)
    await driver.rows(lane, hidden_states(1), 0, step=2, deadline_ns=perf_counter_ns() + 10**10)


async def test_steps_of_a_closed_session_are_dropped(driver, hidden_states):
    lane = driver.lane()
    hold = threading.Event()
    held = asyncio.ensure_future(driver.engine.run(lambda: hold.wait(10)))
    await asyncio.sleep(0)
    steps = [driver.submit(lane, hidden_states(1), i, step=i) for i in range(3)]
    lane.closed = True
    hold.set()
    assert all(isinstance(outcome, StepDropped) for outcome in await asyncio.gather(*steps))
    await held
    assert driver.engine.statistics().tokens == 0


async def test_run_hands_back_results_and_errors_of_the_compute_thread(driver):
    name = await driver.engine.run(lambda: threading.current_thread().name)
    assert name == "swarm-node-compute"
    assert await driver.engine.run(torch.is_inference_mode_enabled)
    with pytest.raises(ZeroDivisionError):
        await driver.engine.run(lambda: 1 // 0)


async def test_stop_answers_what_waits_and_takes_nothing_more(driver, hidden_states):
    lane = driver.lane()
    hold = threading.Event()
    held = asyncio.ensure_future(driver.engine.run(lambda: hold.wait(10)))
    await asyncio.sleep(0)
    stopping = asyncio.ensure_future(driver.engine.stop())
    await asyncio.sleep(0)
    with pytest.raises(LocalProtocolError):
        driver.submit(lane, hidden_states(1), 0)
    hold.set()
    await asyncio.gather(stopping, held)
    await driver.engine.stop()


async def test_memory_that_is_not_there_is_a_memory_error(driver):
    with pytest.raises(MemoryError):
        driver.lane(tokens=2**50)
