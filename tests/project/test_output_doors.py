"""Whatever is shown goes through the doors that make foreign text safe to show:
``node/cli/shared/output.py``."""

from __future__ import annotations

import ast

import pytest

from tests import ROOT

PACKAGES = ("swarm", "dht", "shards", "client", "node")
DOOR = "node/cli/shared/output.py"


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
    files = [path for path in sorted((ROOT / package).rglob("*.py")) if path != ROOT / DOOR]
    assert files
    found = {str(path.relative_to(ROOT)): bypasses(path.read_text()) for path in files}
    assert {file: lines for file, lines in found.items() if lines} == {}


def test_the_check_sees_what_it_looks_for() -> None:
    source = "import sys\nprint(1)\nsys.stdout.write('x')\nlogging.basicConfig()\nlist(print_text('x'))\n"
    assert len(bypasses(source)) == 3
    assert bypasses((ROOT / DOOR).read_text())
