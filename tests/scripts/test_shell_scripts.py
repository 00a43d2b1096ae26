"""Help of the scripts that set things up: at once, and nothing is installed for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import ROOT

SAYS = {
    "setup": "TORCH=cpu | default",
    "demo": "A real swarm on this machine answers a prompt",
    "test": "scripts/test --quick",
    "bench": "Speed and memory of a local swarm",
}


@pytest.mark.parametrize("script", SAYS)
def test_help_in_a_fresh_checkout_installs_nothing(script: str, tmp_path: Path) -> None:
    for each in ("scripts/lab/start", *(f"scripts/{name}" for name in SAYS)):
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / each, tmp_path / each)
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [tmp_path / "scripts" / script, "--help"],
        capture_output=True,
        text=True,
        timeout=20,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "PYTHON": "/nowhere"},
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[script] in done.stdout
    assert not any(line.startswith("#") for line in done.stdout.splitlines())
    assert sorted(tmp_path.rglob("*")) == before
