"""What is waited for is said once it takes longer than a moment, and never to a program."""

from __future__ import annotations

import time

import pytest

from swarm_node.node.cli.shared import progress
from swarm_node.node.cli.shared.progress import SlowLine, progress_line


def test_what_takes_its_time_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SLOW_S", 0.02)
    line = progress_line("Opening the model ...")
    assert isinstance(line, SlowLine)
    line.start()
    line.update("Waiting for [bold]blocks")
    deadline = time.monotonic() + 10
    said = ""
    while not said and time.monotonic() < deadline:
        time.sleep(0.005)
        said += capsys.readouterr().err
    line.stop()
    assert said == "Waiting for [bold]blocks\n"


def test_what_is_quick_is_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    line = SlowLine("Opening the model ...")
    line.start()
    line.stop()
    assert not line._timer.is_alive() or line._timer.finished.is_set()
    quiet = progress_line("Opening the model ...", speak=False)
    monkeypatch.setattr(progress, "SLOW_S", 0.0)
    quiet.start()
    quiet.update("more")
    quiet.stop()
    assert capsys.readouterr().err == ""
