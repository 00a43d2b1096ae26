"""What a person sees of a bootstrap node."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from swarm_node.dht.joining.network import NetworkFigures
from swarm_node.node.cli.serving.bootstrap import figures_line
from tests.doubles.terminal import CTRL_C, Terminal


@pytest.mark.parametrize(
    ("figures", "line"),
    [
        (NetworkFigures(), "connected to 0 peers"),
        (NetworkFigures(1, 2_500_000), "connected to 1 peer · 2.5 MB relayed"),
    ],
)
def test_the_status_line(figures: NetworkFigures, line: str) -> None:
    assert figures_line(figures) == line


def test_a_relay_tells_what_it_does_until_it_is_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "swarm_node.node.cli", "bootstrap", "--relay"]
    options = ["--host", "127.0.0.1", "--port", "0", "--no-mdns"]
    with Terminal([*command, *options], {"SWARM_NODE_HOME": str(tmp_path)}) as terminal:
        terminal.wait_for("Ctrl-C stops it.")
        line = re.search(r"connected to \d+ peers? · (\S+ \S+) ", terminal.wait_for("relayed"))
        assert line, "a relay is tried with two peers of its own"
        assert line[1] != "0 B"
        terminal.type(CTRL_C)
        terminal.wait_for("Stopped.")
        assert terminal.exit_code() == 0
