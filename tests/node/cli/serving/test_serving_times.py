"""When a node of a volunteer starts and leaves."""

from __future__ import annotations

import asyncio
import re
import sys
from datetime import datetime, time
from pathlib import Path

import httpx2

from swarm_node.node.cli.serving.serving_times import ServingTimes, StopRequest
from swarm_node.node.volunteering.machine_state import MachineState
from swarm_node.node.volunteering.policy import RestPolicy, VolunteerLimits
from tests import ROOT
from tests.doubles.terminal import CTRL_C, Terminal


class Machine:
    """``on_mains`` is what a test says; a look waits for ``look``."""

    def __init__(self) -> None:
        self.on_mains = True
        self.told: list[str] = []
        self.was_told = asyncio.Event()
        self.looks: asyncio.Queue[None] = asyncio.Queue()

    def times(self) -> ServingTimes:
        return ServingTimes(
            RestPolicy(VolunteerLimits(only_mains=True)),
            self._tell,
            read=lambda: MachineState(now=time(12, 0), on_mains=self.on_mains),
            clock=lambda: 0.0,
            sleep=lambda _: self.looks.get(),
        )

    def _tell(self, why: str) -> None:
        self.told.append(why)
        self.was_told.set()

    def look(self, *, on_mains: bool) -> None:
        self.on_mains = on_mains
        self.looks.put_nowait(None)


async def test_it_serves_rests_and_serves_again() -> None:
    machine = Machine()
    times = machine.times()
    assert await times.may_serve()
    left = asyncio.Event()

    async def run() -> None:
        await left.wait()

    serving = asyncio.create_task(times.serve(run(), left.set))
    machine.look(on_mains=True)
    machine.look(on_mains=False)
    await serving
    assert machine.told == ["the machine runs on its battery"]
    again = asyncio.create_task(times.may_serve())
    machine.look(on_mains=False)
    machine.look(on_mains=True)
    assert await again
    assert machine.told[1:] == [""]


async def test_a_request_to_stop_ends_the_rest() -> None:
    machine, stop = Machine(), StopRequest()
    machine.on_mains = False
    waiting = asyncio.create_task(stop.before(machine.times().may_serve()))
    await machine.was_told.wait()
    stop()
    assert await waiting is None


async def test_a_node_that_ends_by_itself_is_not_asked_to_leave() -> None:
    machine = Machine()
    left: list[None] = []

    async def run() -> None:
        pass

    await machine.times().serve(run(), lambda: left.append(None))
    assert left == []


def test_each_signal_goes_to_what_runs() -> None:
    stop = StopRequest()
    stop()
    assert stop.requested
    calls: list[int] = []
    stop.calls(lambda: calls.append(1))
    assert calls == [1], "the signal came before there was anything to stop"
    stop()
    assert calls == [1, 1]


async def test_a_signal_while_the_model_is_looked_for_ends_that() -> None:
    stop, ended = StopRequest(), asyncio.Event()

    async def open_node() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return "node"

    opening = asyncio.create_task(stop.before(open_node()))
    await asyncio.sleep(0)
    stop()
    assert await opening is None
    assert ended.is_set()

    async def opened() -> str:
        return "node"

    assert await StopRequest().before(opened()) == "node"


def test_outside_its_hours_a_node_says_so_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.touch()  # it is not read
    hour = datetime.now().hour
    rest = f"{(hour + 6) % 24}-{(hour + 12) % 24 or 24}"
    words = ["serve", "--model", str(model), "--hours", rest, "--nice", "1", "--metrics", "0"]
    program = [sys.executable, "-m", "swarm_node.node.cli", *words]
    with Terminal(program, {"PYTHONPATH": str(ROOT), "SWARM_NODE_HOME": str(tmp_path)}) as terminal:
        terminal.wait_for("Resting: it serves at")
        url = re.search(r"Figures for Prometheus: (http://\S+)/metrics", terminal.text)
        assert url
        assert httpx2.get(f"{url[1]}/health").json() == {"status": "resting"}
        terminal.type(CTRL_C)
        terminal.wait_for("Stopped.")
        assert terminal.exit_code() == 0
