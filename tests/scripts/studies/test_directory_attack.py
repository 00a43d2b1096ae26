"""scripts/study directory_attack in little: a directory with hostile nodes tells everybody who is there."""

from __future__ import annotations

import pytest

from scripts.studies.directory_attack import main as directory_attack
from scripts.studies.directory_attack.main import Case


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(nodes=24, hostile=6, reads=30, seed=3), id="anywhere"),
        pytest.param(
            Case(nodes=42, hostile=24, reads=20, seed=5, groups=20, grind=20), id="all around a key"
        ),
    ],
)
def test_every_honest_node_is_found(case: Case) -> None:
    report = directory_attack.attack(case)
    assert report["right"] == 1.0
    assert report["not_announced"] == 0
    assert report["p99_s"] < 3.0
