"""The bottom of a terminal while a node runs."""

from __future__ import annotations

import sys

from tests import ROOT
from tests.doubles.terminal import ENTER, Terminal

PROGRAM = """
from swarm_node.node.cli.serving.board import Board
from swarm_node.node.cli.shared.output import console
with Board(speak=True) as board:
    board.transfer("Fetching", 0, 8_000_000, "Fetching [b]a model")
    input()
    board.transfer("Fetching", 4_000_000, 8_000_000, "Fetching [b]a model")
    input()
    board.transfer("Fetching", 8_000_000, 8_000_000, "Fetching [b]a model")
    board.status("12 tokens served")
    console.print("Online")
    input()
    board.status("13 tokens served")
    input()
"""


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
