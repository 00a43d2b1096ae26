"""A program that came in a file is bounded in time, memory and what it says, and ends with who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextvars import copy_context
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from swarm_node.swarm.confined import process
from swarm_node.swarm.confined.asking import ASKING, Asking
from swarm_node.swarm.confined.process import Bounds, ConfinedProcess, EndedError

PROGRAM = """
import os, sys

def opened(opening):
    return ["opened", opening], answer

def answer(request):
    if request == "loop":
        while True: pass
    if request == "hold": return 9 ** (9 ** 9)
    if request == "memory": return len("a" * 3_000_000_000)
    if request == "crash": os.abort()
    if request == "raise": raise ValueError("no \\x1b[31m")
    if request == "exit": sys.exit(3)
    if request == "killed": os.kill(os.getpid(), 9)
    if str(request).startswith("/"):
        os.unlink(request)  # the next time it is not there
        os.kill(os.getpid(), 9)
    if request == "large": return "a" * 2_000_000
    if request == "print": print("noise", flush=True)
    if request == "write": return os.write(os.open(__file__, os.O_WRONLY), b"x")
    if request == "about": return [os.getpid(), sorted(os.environ), sorted(os.listdir("/proc/self/fd"))]
    return request
"""
BOUNDS = Bounds(memory_bytes=256 * 2**20, cpu_s=0, wall_s=10.0, reply_bytes=2**20)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    return file


def test_a_program_answers(program: Path) -> None:
    confined = ConfinedProcess(program, (), {"a": 1}, BOUNDS)
    assert confined.opened() == ["opened", {"a": 1}]
    for value in (None, 1.5, "Grüße 😀", "\ud800", [{"a": float("inf")}], "print"):
        assert confined.ask(value) == value
    confined.close()
    confined.close()
    assert confined.ask("anew") == "anew"
    confined.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ("hold", "took more than"),
        ("memory", "more than 256 MiB of memory"),
        ("crash", "ended .SIGABRT"),
        ("raise", "ValueError: no"),
        ("exit", "SystemExit"),
        ("large", "larger than 1 MiB"),
        ("write", "File too large"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows bounds time alone")
def test_what_goes_over_its_bounds_is_ended_and_the_next_is_answered(
    program: Path, request_: str, why: str
) -> None:
    confined = ConfinedProcess(program, (), None, BOUNDS)
    with pytest.raises(EndedError, match=why):
        confined.ask(request_)
    assert confined.ask("next") == "next"
    confined.close()


def test_wall_time_ends_what_the_system_does_not(program: Path) -> None:
    confined = ConfinedProcess(program, (), None, Bounds(cpu_s=60, wall_s=0.4))
    with pytest.raises(EndedError, match="took more than"):
        confined.ask("loop")
    confined.close()


def test_memory_is_watched_where_the_system_does_not_bound_it(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process._Child, "_memory", lambda _: 2**40)
    monkeypatch.setattr(process, "_WATCHED", True)
    confined = ConfinedProcess(program, (), None, Bounds(cpu_s=60, wall_s=10))
    with pytest.raises(EndedError, match="512 MiB of memory"):
        confined.ask("loop")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_it_inherits_nothing_and_ends_with_its_parent(program: Path) -> None:
    secret = os.open(program, os.O_RDONLY)
    os.set_inheritable(secret, True)
    code = f"""
from pathlib import Path
from swarm_node.swarm.confined import process
from swarm_node.swarm.confined.asking import ASKING, Asking
from swarm_node.swarm.confined.process import Bounds, ConfinedProcess
confined = ConfinedProcess(Path({str(program)!r}), (), None)
print(*confined.ask("about")[0:1], *confined.ask("about")[1:], sep="|", flush=True)
import os; os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "KEY": "x"}
    )
    os.close(secret)
    pid, environment, files = done.stdout.strip().split("|")
    assert "KEY" not in environment
    assert len(files.split(",")) <= 5, files  # three, their copy for replies, and the folder being listed
    until = monotonic() + 5
    while Path(f"/proc/{pid}").exists() and monotonic() < until:
        sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()


def test_what_cannot_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Path) -> None:
    with pytest.raises(EndedError, match="process ended"):
        ConfinedProcess(tmp_path / "missing.py", (), None, BOUNDS).opened()
    with pytest.raises(EndedError, match="no_such_package is missing"):
        ConfinedProcess(program, ("no_such_package",), None, BOUNDS).opened()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(EndedError, match="no process can be started"):
        ConfinedProcess(program, (), None, BOUNDS).opened()


def test_a_request_that_is_no_json_costs_nothing(program: Path) -> None:
    confined = ConfinedProcess(program, (), None, BOUNDS)
    bad: Any = 10**5000
    with pytest.raises(ValueError):
        confined.ask(bad)
    assert confined.ask(1) == 1
    confined.close()


def test_a_process_that_others_kill_is_replaced_once(program: Path, tmp_path: Path) -> None:
    """As the system does where memory is short: nobody notices, unless it happens again."""
    confined = ConfinedProcess(program, (), None, BOUNDS)
    os.kill(confined.ask("about")[0], signal.SIGKILL)  # while nothing is asked
    assert confined.ask("hello") == "hello"
    (tmp_path / "once").touch()
    with pytest.raises(EndedError, match="FileNotFoundError"):  # it is asked again
        confined.ask(str(tmp_path / "once"))
    with pytest.raises(EndedError, match=r"its process ended \(SIGKILL\)"):
        confined.ask("killed")
    assert confined.ask("well") == "well"
    confined.close()


def test_what_nobody_waits_for_any_more_is_ended(program: Path) -> None:
    confined = ConfinedProcess(program, (), None, Bounds(cpu_s=30, wall_s=30.0))
    pid = confined.ask("about")[0]
    asking = Asking()
    context = copy_context()
    context.run(ASKING.set, asking)
    threading.Timer(0.1, asking.give_up).start()
    began = monotonic()
    with pytest.raises(EndedError, match="nobody waits"):
        context.run(confined.ask, "loop")
    assert monotonic() - began < 10
    with pytest.raises(EndedError, match="nobody waits"):
        context.run(confined.ask, "hello")  # it does not even begin
    other = confined.ask("about")[0]
    assert other != pid
    with pytest.raises(EndedError, match="nobody waits"):
        context.run(confined.ask, "hello")
    assert confined.ask("about")[0] == other  # which was not ended for it
    confined.close()
