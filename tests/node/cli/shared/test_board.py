"""What a command is doing: at the bottom of a terminal, or in a few lines."""

from __future__ import annotations

import re
import sys

import pytest

from swarm_node.node.cli.shared import progress
from swarm_node.node.cli.shared.board import Board
from tests import ROOT
from tests.doubles.terminal import ENTER, Terminal

PROGRAM = """
from swarm_node.node.cli.shared.board import Board
from swarm_node.node.cli.shared.output import console
with Board("Starting ...", speak=True) as board:
    board.progress(0, 8_000_000, "Fetching [b]a model")
    input()
    board.progress(4_000_000, 8_000_000, "Fetching [b]a model")
    input()
    board.progress(8_000_000, 8_000_000, "Fetching [b]a model")
    board.status("12 tokens served")
    console.print("Online")
    input()
    board.status("13 tokens served")
    input()
"""


LOGGING = """
import logging
from swarm_node.node.cli.shared.board import Board
from swarm_node.node.cli.shared.logs import LogOptions, set_up_logging
set_up_logging(LogOptions(level="info"))
logger = logging.getLogger("swarm_node.test")
logger.info("before")
with Board("Waiting", speak=True):
    input()
    logger.info("beside")
    input()
logger.info("after")
"""


def test_a_log_line_stands_above_the_status_line() -> None:
    with Terminal([sys.executable, "-c", LOGGING], {"PYTHONPATH": str(ROOT)}) as terminal:
        terminal.wait_for("Waiting")
        terminal.type(ENTER)
        terminal.wait_for("INFO swarm_node.test beside")
        before = terminal.raw.partition(" INFO swarm_node.test beside")[0]
        assert "\x1b[2K" in before.rpartition("Waiting")[2], "the status line is erased before the log line"
        terminal.type(ENTER)
        terminal.wait_for("INFO swarm_node.test after")
        logged = re.findall(r"INFO swarm_node\.test (\w+)", terminal.text)
        assert logged == ["before", "beside", "after"]


def test_the_status_line_goes_on_after_a_transfer() -> None:
    with Terminal([sys.executable, "-c", PROGRAM], {"PYTHONPATH": str(ROOT)}) as terminal:
        assert "█" not in terminal.wait_for("0 B of 8.0 MB"), "nothing is here yet"
        terminal.wait_for("Starting ...")
        terminal.type(ENTER)
        assert "Fetching [b]a model ██████████░" in terminal.wait_for("4.0 MB of 8.0 MB")
        terminal.type(ENTER)
        terminal.wait_for("Online")
        terminal.wait_for("12 tokens served")
        terminal.type(ENTER)
        assert "MB" not in terminal.wait_for("13 tokens served")
        terminal.type(ENTER)
        assert terminal.exit_code() == 0


STAGES = """
from swarm_node.node.cli.shared.board import Board
with Board("Starting ...", speak=True) as board:
    board.progress(1_000_000, 8_000_000, "Fetching", "weights")
    board.progress(2_000_000, 4_000_000, "Hashing", "files")
    input()
    board.stage("Opening [b]it")
    input()
    board.close()
    input("closed")
"""


def test_bars_side_by_side_end_with_the_next_stage() -> None:
    with Terminal([sys.executable, "-c", STAGES], {"PYTHONPATH": str(ROOT)}) as terminal:
        terminal.wait_for("Fetching ██░")
        terminal.wait_for("Hashing  ██████████░")
        terminal.wait_for("Starting ...")
        terminal.type(ENTER)
        assert "MB" not in terminal.wait_for("Opening [b]it").split("Starting ...")[-1]
        terminal.type(ENTER)
        terminal.wait_for("closed")
        terminal.type(ENTER)
        assert terminal.exit_code() == 0


def test_without_a_terminal_a_transfer_is_told_in_a_few_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SLOW_S", 60.0)
    with Board("Starting ...", speak=True) as board:
        for done in range(0, 1_000_001, 1000):
            board.progress(done, 1_000_000, "Fetching [bold]x")
        board.progress(0, 0, "Looking for peers")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 11
    assert (told[0], told[-1]) == ("Fetching [bold]x: 0 % of 1.0 MB", "Fetching [bold]x: 100 % of 1.0 MB")
    with Board("Starting ...", speak=False) as board:
        board.stage("Looking")
        board.progress(1, 2, "Fetching")
    assert capsys.readouterr().err == ""
