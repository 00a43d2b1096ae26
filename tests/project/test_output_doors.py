"""Whatever is shown goes through the doors that make foreign text safe to show:
``node/cli/shared/output.py``, and ``logs.py`` beside it for the log."""

from __future__ import annotations

import ast

import pytest

from tests import ROOT

PACKAGES = ("swarm", "dht", "shards", "client", "node")
DOORS = ("node/cli/shared/output.py", "node/cli/shared/logs.py")


def bypasses(source: str) -> list[str]:
    """What in ``source`` writes to a terminal or sets up a log by itself."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in {"print", "Console", "rich.print"} or called.endswith(
            (
                *("sys.stdout.write", "sys.stderr.write", "stdout.buffer.write", "stderr.buffer.write"),
                *("logging.basicConfig", "StreamHandler", ".addHandler", "setLogRecordFactory"),
            )
        ):
            found.append(f"line {node.lineno}: {called}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_shown_past_the_doors(package: str) -> None:
    files = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / package).rglob("*.py"))}
    assert files
    found = {file: bypasses(path.read_text()) for file, path in files.items() if file not in DOORS}
    assert {file: lines for file, lines in found.items() if lines} == {}


def test_the_check_sees_what_it_looks_for() -> None:
    source = "import sys\nprint(1)\nsys.stdout.write('x')\nlogging.basicConfig()\nlist(print_text('x'))\n"
    assert len(bypasses(source)) == 3
    assert all(bypasses((ROOT / door).read_text()) for door in DOORS)
