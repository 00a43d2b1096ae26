"""How a process is asked to end, in the loops that it may run in."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from swarm_node.node.cli.shared.signals import (
    at_end_of_input,
    exiting_on_end_signals,
    on_stop_signals,
    until_ended,
)
from swarm_node.swarm.runtime.tasks import new_event_loop

Loop = Callable[[], asyncio.AbstractEventLoop]

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none of these signals")


@pytest.fixture(params=[new_event_loop, asyncio.new_event_loop])
def loop(request: pytest.FixtureRequest) -> Loop:
    return request.param


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """They are as before after each test; a hang-up may be ignored."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    yield
    after = signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, before[2])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before[:2]
    assert after in (before[2], signal.SIG_IGN)


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_closes_what_it_opened(loop: Loop, number: int) -> None:
    closed = []

    async def command() -> None:
        try:
            send(number)
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.01)
            closed.append(True)

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(until_ended(command())) == 128 + number
    assert closed == [True]


def test_a_command_that_ends_by_itself(loop: Loop) -> None:
    async def command() -> None:
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(until_ended(command())) == 0


def test_ctrl_c_ends_a_command_and_what_it_waits_for(loop: Loop) -> None:
    async def command() -> None:
        send(signal.SIGINT)
        await asyncio.sleep(30)

    with asyncio.Runner(loop_factory=loop) as runner, pytest.raises(KeyboardInterrupt):
        runner.run(until_ended(command()))


@pytest.mark.parametrize(
    ("numbers", "stops"),
    [
        ((signal.SIGTERM,), 1),
        ((signal.SIGHUP,), 1),
        ((signal.SIGINT, signal.SIGINT), 2),
        ((signal.SIGTERM, signal.SIGINT), 2),
        ((signal.SIGHUP, signal.SIGHUP, signal.SIGHUP), 1),
        ((signal.SIGTERM, signal.SIGHUP), 1),
        ((signal.SIGHUP, signal.SIGTERM), 2),
    ],
)
def test_a_hang_up_never_cuts_short(loop: Loop, numbers: tuple[int, ...], stops: int) -> None:
    async def main() -> int:
        heard = []
        with on_stop_signals(lambda: heard.append(True)):
            for number in numbers:
                send(number)
                await asyncio.sleep(0.01)
        return len(heard)

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(main()) == stops


def test_a_hang_up_that_comes_when_a_node_has_ended_changes_nothing(loop: Loop) -> None:
    async def node() -> None:
        with on_stop_signals(lambda: None):
            send(signal.SIGHUP)
            await asyncio.sleep(0.01)
        send(signal.SIGHUP)
        await asyncio.sleep(0.01)

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(until_ended(node())) == 0
    send(signal.SIGHUP)


def test_nohup_counts(loop: Loop) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def command() -> None:
        with on_stop_signals(lambda: pytest.fail("it was told to ignore that")):
            send(signal.SIGHUP)
            await asyncio.sleep(0.01)
        send(signal.SIGHUP)

    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            assert runner.run(until_ended(command())) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_program_without_a_loop_leaves_its_contexts(number: int) -> None:
    with pytest.raises(SystemExit) as raised, exiting_on_end_signals():
        send(number)
    assert raised.value.code == 128 + number


def test_the_end_of_input_stops_as_a_signal_does(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()

    async def served() -> None:
        stopped = asyncio.Event()
        with os.fdopen(reading) as other_end:
            monkeypatch.setattr(sys, "stdin", other_end)
            at_end_of_input(stopped.set)
            os.write(writing, b"what is said is not heard\n")
            await asyncio.sleep(0)
            assert not stopped.is_set()
            os.close(writing)
            await stopped.wait()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(served())
