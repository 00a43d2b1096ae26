"""Exit codes of commands whose work is their output, whatever becomes of it (docs/reference/cli.md)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LISTS = "models --local --json"
HELP = "--help"
SITUATIONS = [
    # command, redirections, environment, exit code, lines on standard error
    (LISTS, "| true", {}, 141, 0),
    (HELP, "| true", {}, 141, 0),
    (HELP, ">/dev/full", {}, 7, 2),
    (LISTS, "<&- >&- 2>&-", {}, 0, 0),
    (LISTS, "2>/dev/full", {"PYTHONIOENCODING": "ascii"}, 0, 0),
]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
def test_exit_codes(tmp_path: Path) -> None:
    started = [
        subprocess.Popen(
            [
                "bash",
                "-c",
                f"{sys.executable} -m swarm_node.node.cli {command} {rest}; exit ${{PIPESTATUS[0]}}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "SWARM_NODE_HOME": str(tmp_path / "\N{PARTY POPPER}"), **environment},
        )
        for command, rest, environment, _, _ in SITUATIONS
    ]
    for process, (command, rest, _, code, lines) in zip(started, SITUATIONS, strict=True):
        said = process.communicate(timeout=60)[1]
        assert (process.returncode, said.count("\n")) == (code, lines), f"{command} {rest}: {said}"
        assert "Traceback" not in said
