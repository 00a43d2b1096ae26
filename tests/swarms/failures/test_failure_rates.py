"""scripts/study failure_rates on a tiny model: answers in spite of failures, by repair and by restart."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests import ROOT

pytestmark = [pytest.mark.swarm]

SCRIPT = [sys.executable, "-m", "scripts.studies", "failure_rates"]


def test_a_small_table_is_measured_in_one_run() -> None:
    options = ["--model", "tiny", "--rates", "0.05", "--steps", "24", "--seconds", "0.1", "--limit", "15"]
    done = subprocess.run(
        [*SCRIPT, *options, "--replicas", "2", "--spans", "1", "--json", "-"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["problems"] == []
    cells = {(cell["rate"], cell["policy"]): cell for cell in report["cells"]}
    assert set(cells) == {(0.05, policy) for policy in ("repair", "restart")}
    repaired, restarted = cells[0.05, "repair"], cells[0.05, "restart"]
    assert repaired["finished"] == repaired["attempts"] > 0, "no failure costs an answer"
    assert repaired["failures"] >= repaired["repairs"] > 0
    assert restarted["attempts"] > restarted["finished"], "there, each failure does"
    assert all(cell["wrong"] == 0 for cell in cells.values())
