"""The command line, in a process that may not import what takes a while."""

from __future__ import annotations

import sys

from swarm_node.node.cli.main import main as run

HEAVY = ("numpy", "torch", "tokenizers", "hivemind", "uvicorn", "prompt_toolkit")


def main(words: list[str]) -> int:
    """The exit code of one command; 1 where it has imported what is HEAVY."""
    code = run(words)
    if heavy := [name for name in HEAVY if name in sys.modules]:
        sys.stderr.write(f"imported {heavy}\n")
        return 1
    return code
