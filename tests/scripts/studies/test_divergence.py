"""scripts/study divergence: its arithmetic, and a small run of the real thing."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.studies.divergence.main import rates, show_costs, wilson
from scripts.studies.divergence.measure import _compare, _groups
from tests import ROOT

SCRIPT = [sys.executable, "-m", "scripts.studies", "divergence"]


def test_intervals() -> None:
    """Textbook values of the score interval."""
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    found = rates({"answers": 10, "diverged": 5, "choices": 500})
    assert (found["share"], found["per_1000"]) == (0.5, 10.0)
    assert rates({"answers": 1, "diverged": 0, "choices": 0})["per_1000"] == 0.0


def test_answers_are_compared_from_where_they_were_treated_differently() -> None:
    found = _compare([[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[1, 2, 3], [4, 0, 0], [7, 8, 0]], [1, 0, 2])
    # The first had two choices since token 1, the second two up to its flip, the third one since token 2.
    assert found == {"answers": 3, "diverged": 2, "choices": 2 + 2 + 1}


def test_every_session_is_in_one_batch_of_each_step() -> None:
    rng = random.Random(1)
    for groups in (_groups(20, None), *(_groups(20, rng) for _ in range(20))):
        assert sorted(index for group in groups for index in group) == list(range(20))
        assert max(map(len, groups)) <= 8
        assert min(map(len, groups)) >= 1


def test_costs_are_a_table_that_documentation_can_hold(capsys: pytest.CaptureFixture[str]) -> None:
    loads = {name: {"without_ms": 2.0, "with_ms": 3.0, "times": 1.5} for name in ("decode 1", "prefill 512")}
    found = {"without": "torch", "with": "torch rowwise", "weights": "int8", "loads": loads}
    show_costs({"cost": {"torch int8": found}})
    assert capsys.readouterr().out.splitlines() == [
        "| without | with | decode 1 | prefill 512 |",
        "|---|---|---|---|",
        "| torch, int8 | torch rowwise | 1.50 (2.0 to 3.0 ms) | 1.50 (2.0 to 3.0 ms) |",
    ]


@pytest.mark.model
def test_a_deterministic_answer_stays_itself(smollm2_path: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    way = "deterministic torch int4"
    size = ["--tokens", "5", "--threads", "1"]
    options = ["--model", str(smollm2_path), "--prompts", "2", "--prompt-tokens", "48"]
    done = subprocess.run(
        [*SCRIPT, *options, *size, "--json", str(report), "--ways", way],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"| {way} |") == 1
    found = json.loads(report.read_text())["ways"][way]
    assert found["kernels"] == "torch rowwise"
    for kind in ("batched", "repaired"):
        assert (found[kind]["answers"], found[kind]["diverged"]) == (2, 0)
