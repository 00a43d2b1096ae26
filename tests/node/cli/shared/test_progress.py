"""What is waited for is said once it takes longer than a moment, and never to a program."""

from __future__ import annotations

import time

import pytest

from swarm_node.node.cli.shared import progress
from swarm_node.node.cli.shared.progress import SlowLine, progress_line
from swarm_node.swarm.transport.direct.with_daemon import STARTING_P2PD


def test_what_takes_its_time_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SLOW_S", 0.02)
    line = progress_line("Opening the model ...")
    assert isinstance(line, SlowLine)
    line.start()
    line.update("Waiting for [bold]blocks")
    assert said_by(capsys) == "Waiting for [bold]blocks\n"
    line.stop()


def test_each_thing_is_said_once_and_again_after_it_was_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SLOW_S", 0.02)
    line = SlowLine(before="~")
    line.update("Waiting for blocks 0-3 (30 s left)")
    assert said_by(capsys) == "~Waiting for blocks 0-3 (30 s left)\n"
    line.update("Waiting for blocks 0-3 (29 s left)")
    line.update("Looking for the swarm ...")
    assert said_by(capsys) == "~Looking for the swarm ...\n"
    line.stop()
    line.update("Looking for the swarm ...")
    assert said_by(capsys) == "~Looking for the swarm ...\n"
    line.stop()


def test_a_daemon_that_is_started_is_told_of_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    line = progress_line("Opening the model ...")
    line.start()
    line.update(f"{STARTING_P2PD}peer X cannot be dialled over plain TCP")
    assert capsys.readouterr().err == "Starting p2pd: peer X cannot be dialled over plain TCP\n"
    line.stop()


def said_by(capsys: pytest.CaptureFixture[str]) -> str:
    deadline, said = time.monotonic() + 10, ""
    while not said.endswith("\n") and time.monotonic() < deadline:
        time.sleep(0.005)
        said += capsys.readouterr().err
    return said


def test_what_is_quick_is_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    line = SlowLine("Opening the model ...")
    line.start()
    line.stop()
    assert line._timer is None
    quiet = progress_line("Opening the model ...", speak=False)
    monkeypatch.setattr(progress, "SLOW_S", 0.0)
    quiet.start()
    quiet.update("more")
    quiet.stop()
    assert capsys.readouterr().err == ""
