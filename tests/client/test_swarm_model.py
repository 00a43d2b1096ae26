"""The face for programs without an event loop, over a fake swarm that lives on its background loop."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

import swarm_node.client
from swarm_node.client import SwarmModel, async_model
from swarm_node.client.background import BackgroundLoop
from swarm_node.swarm.errors import CheckpointError, SwarmError, UsageError
from swarm_node.swarm.routing.best_route import NoRouteError
from tests import ROOT
from tests.doubles.fake_swarm import BOS, FakeSwarm, ScriptedHead, expected

PROMPT = [BOS, *b"a prompt"]
ADDRESS = "/ip4/192.0.2.1/tcp/1/p2p/12D3KooWGBfKT9DXjP8kTGGwtJmqvCDqwnfTFGvzPLEyJZ1rEcBR"


class Sync:
    """A SwarmModel over a fake swarm; ``sessions()`` counts what its nodes hold."""

    def __init__(self, head: ScriptedHead | None = None, **spans: str) -> None:
        self.loop = BackgroundLoop()

        async def start() -> SwarmModel:
            self.swarm = await FakeSwarm(**(spans or {"a": "0-2", "b": "3-5"})).start()
            return SwarmModel(self.loop, self.swarm.client(head))

        self.model = self.loop.run(start())

    def sessions(self) -> int:
        async def count() -> int:
            return self.swarm.open_sessions

        return self.loop.run(count())

    def slow(self, seconds: float = 0.005) -> None:
        for node in self.swarm.nodes.values():
            node.behaviour.step_delay_s = seconds


@pytest.fixture
def make() -> Iterator[Callable[..., Sync]]:
    made: list[Sync] = []

    def build(*arguments: object, **options: object) -> Sync:
        made.append(Sync(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for one in made:
        if hasattr(one, "model"):
            one.model.close()
        one.loop.close()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("it did not happen within 5 s")
        time.sleep(0.001)


def test_generate_and_details(make: Callable[..., Sync]) -> None:
    model = make().model
    answer = model.generate_detailed(PROMPT, max_new_tokens=8, ignore_eos=True)
    assert list(answer.token_ids) == expected(PROMPT, 8)
    assert model.generate(PROMPT, max_new_tokens=8, ignore_eos=True) == answer.text
    assert (model.model.name, model.context) == ("toy", 512)


def test_stream_and_its_result(make: Callable[..., Sync]) -> None:
    model = make(ScriptedHead(b"hello")).model
    stream = model.stream("hi")
    assert list(stream) == ["h", "e", "l", "l", "o"]
    assert (stream.result.text, stream.result.finish_reason) == ("hello", "stop")
    assert next(stream, None) is None


def test_wrong_calls_raise_at_once(make: Callable[..., Sync]) -> None:
    model = make().model
    with pytest.raises(UsageError, match="temperature"):
        model.stream("hi", temperature=-1)
    with pytest.raises(UsageError, match="empty"):
        model.generate("")
    with pytest.raises(UsageError, match="max_tokens"):
        model.generate("hi", max_tokens=3)  # type: ignore[call-arg]


def test_errors_of_a_stream_come_from_the_iterator(make: Callable[..., Sync]) -> None:
    model = make(a="0-2").model
    stream = model.stream("hi")
    with pytest.raises(NoRouteError, match="3-5"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)
    with pytest.raises(NoRouteError):
        _ = stream.result


def test_closing_a_stream_frees_the_hops(make: Callable[..., Sync]) -> None:
    one = make()
    one.slow()
    with one.model.stream(PROMPT, ignore_eos=True) as stream:
        next(stream)
        assert one.sessions() == 2
        with pytest.raises(UsageError, match="not complete"):
            _ = stream.result
    _until(lambda: one.sessions() == 0)


def test_dropping_a_stream_frees_the_hops(make: Callable[..., Sync]) -> None:
    one = make()
    one.slow()
    for _ in one.model.stream(PROMPT, ignore_eos=True):
        break
    gc.collect()
    _until(lambda: one.sessions() == 0)


def test_interrupting_a_generation_frees_the_hops(
    make: Callable[..., Sync], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make()
    one.slow()
    job_result = BackgroundLoop.submit

    def submit(self: BackgroundLoop, coroutine):  # type: ignore[no-untyped-def]
        job = job_result(self, coroutine)
        future_result = job.future.result

        def interrupted(timeout: float | None = None) -> object:
            _until(lambda: bool(one.swarm.nodes["b"].steps))
            job.future.result = future_result
            raise KeyboardInterrupt

        job.future.result = interrupted
        return job

    with monkeypatch.context() as patch:
        patch.setattr(BackgroundLoop, "submit", submit)
        with pytest.raises(KeyboardInterrupt):
            one.model.generate(PROMPT, max_new_tokens=400, ignore_eos=True)
    _until(lambda: one.sessions() == 0)


def test_threads_may_share_a_model(make: Callable[..., Sync]) -> None:
    model = make().model
    prompts = [[BOS, *f"prompt {number}".encode()] for number in range(4)]
    answers: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        answer = model.generate_detailed(prompts[number], max_new_tokens=6, ignore_eos=True)
        answers[number] = list(answer.token_ids)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == {number: expected(prompts[number], 6) for number in range(4)}


async def test_async_twins(make: Callable[..., Sync]) -> None:
    model = make().model
    tokens = expected(PROMPT, 6)
    options = {"max_new_tokens": 6, "ignore_eos": True}
    answer = await model.agenerate_detailed(PROMPT, **options)
    assert list(answer.token_ids) == tokens
    assert await model.agenerate(PROMPT, **options) == answer.text
    stream = model.astream(PROMPT, **options)
    assert "".join([piece async for piece in stream]) == answer.text
    assert stream.result.token_ids == answer.token_ids


async def test_an_async_stream_stops_early(make: Callable[..., Sync]) -> None:
    one = make()
    one.slow()
    async with one.model.astream(PROMPT, ignore_eos=True) as stream:
        await anext(stream)
    with pytest.raises(UsageError):
        _ = stream.result
    assert await asyncio.to_thread(_until, lambda: one.sessions() == 0) is None
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_cancelling_an_async_generation_frees_the_hops(make: Callable[..., Sync]) -> None:
    one = make()
    one.slow()
    task = asyncio.create_task(one.model.agenerate(PROMPT, max_new_tokens=400, ignore_eos=True))
    await asyncio.to_thread(_until, lambda: one.sessions() == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(_until, lambda: one.sessions() == 0)


async def test_errors_reach_async_callers(make: Callable[..., Sync]) -> None:
    model = make(a="0-2").model
    with pytest.raises(NoRouteError):
        await model.agenerate("hi")
    with pytest.raises(NoRouteError):
        await anext(model.astream("hi"))


def test_closing_the_model_ends_its_streams(make: Callable[..., Sync]) -> None:
    one = make()
    one.slow()
    stream = one.model.stream(PROMPT, ignore_eos=True)
    next(stream)
    one.model.close()
    one.model.close()
    with pytest.raises(SwarmError):
        list(stream)
    with pytest.raises(UsageError, match="closed"):
        one.model.generate(PROMPT)


def test_dropping_the_model_closes_it(make: Callable[..., Sync]) -> None:
    one = make()
    del one.model
    gc.collect()
    assert one.loop.closed


@pytest.mark.slow
async def test_a_client_that_cannot_be_made_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    swarm = await FakeSwarm(a="0-5").start()
    network, closed = swarm.client_network(), []

    async def open_models(*_: object) -> object:
        return network, (replace(swarm.local(), close=lambda: closed.append("local")),)

    async def close() -> None:
        closed.append("network")

    monkeypatch.setattr(async_model, "open_models", open_models)
    monkeypatch.setattr(type(network), "close", lambda self: close())

    def no_memory(_: object) -> object:
        raise MemoryError

    monkeypatch.setattr(async_model, "HeadBatcher", no_memory)
    with pytest.raises(MemoryError):
        await async_model.AsyncSwarmModel.connect(initial_peers=[ADDRESS])
    assert closed == ["network", "local"]


def test_connect_explains_what_is_wrong_before_dialling(tmp_path) -> None:  # type: ignore[no-untyped-def]
    missing = tmp_path / "missing.gguf"
    with pytest.raises(CheckpointError, match=r"missing\.gguf"):
        SwarmModel.connect(model=missing, initial_peers=[])
    with pytest.raises(UsageError, match="wire codec"):
        SwarmModel.connect(model=missing, initial_peers=["x"], wire_codec="int2")
    with pytest.raises(UsageError, match="wait"):
        SwarmModel.connect(model=missing, initial_peers=["x"], wait=-1)
    with pytest.raises(UsageError, match="threads"):
        SwarmModel.connect(model=missing, initial_peers=["x"], threads=0)


def test_every_public_name_is_there() -> None:
    for name in swarm_node.client.__all__:
        assert getattr(swarm_node.client, name).__doc__
    assert set(swarm_node.client.__all__) <= set(dir(swarm_node.client))
    with pytest.raises(AttributeError, match="nothing"):
        _ = swarm_node.client.nothing


@pytest.mark.slow
def test_a_program_that_forgets_to_close_ends() -> None:
    code = (
        "from tests.client.test_swarm_model import Sync\n"
        "one = Sync()\n"
        "one.slow()\n"
        "stream = one.model.stream([1], ignore_eos=True)\n"
        "print(len(next(stream)) > 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_events_and_pieces_are_one_answer(make: Callable[..., Sync]) -> None:
    made = make(ScriptedHead("é STOP".encode()))
    stream = made.model.stream(PROMPT, stop="STOP", logprobs=1)
    first = next(stream.events())
    assert (first.text, first.token, first.top[0][0]) == ("", 0xC3, 0xC3)
    assert next(stream) == "é"  # the same iteration: what went before does not come again
    rest = list(stream.events())
    assert [event.text for event in rest] == [" ", "", "", "", ""]
    assert stream.result.text == "é "
    assert stream.result.logprobs is not None
    assert [choice.token for choice in stream.result.logprobs] == list(stream.result.token_ids)
    assert stream.repaired == ()


async def test_events_in_ones_own_loop(make: Callable[..., Sync]) -> None:
    made = make(ScriptedHead("é ".encode()))
    stream = made.model.astream(PROMPT, max_new_tokens=3)
    events = [event async for event in stream.events()]
    assert [event.text for event in events] == ["", "é", " "]
    assert tuple(event.token for event in events) == stream.result.token_ids
    assert [piece async for piece in stream] == []
    assert stream.repaired == ()
