"""A short soak: clients and strangers of every kind, and nothing of them stays."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests import ROOT

pytestmark = [pytest.mark.swarm]

SOAK = [sys.executable, "-m", "scripts.lab.soak"]


def test_a_short_soak_leaves_nothing_behind() -> None:
    done = subprocess.run(
        [*SOAK, "--model", "tiny-hybrid", "--seconds", "6", "--least", "10", "--json", "-"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert report["done"]["killed"] >= 1
    for kind, least in (("polite", 10), ("hostile", 20)):
        assert sum(report["done"][kind].values()) >= least, report["done"]
    for node in report["nodes"]:
        assert max(sample["sequences"] for sample in node["samples"]) > 0, "the nodes had something to do"
        assert len(node["samples"]) >= 3
