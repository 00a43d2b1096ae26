"""Each target of scripts/fuzz for a moment, and a campaign that finds what is there to be found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.lab.fuzz import campaign
from scripts.lab.fuzz.campaign import Outcome, run_target
from scripts.lab.fuzz.target import NAMES, target_named
from scripts.lab.fuzz.worker import Fuzzer
from scripts.lab.processes.child import ProcessFailedError

SECONDS = 0.2
"""For each target: what it finds in so short a time is there for everybody to find."""
OF_FAMILIES = 1.5
"""For those that compute: some dozens of inputs."""


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_found_in_a_moment(name: str, tmp_path: Path) -> None:
    told: list[tuple[str, dict[str, Any]]] = []

    def tell(event: str, **fields: Any) -> None:
        told.append((event, fields))

    Fuzzer(target_named(name), f"1/{name}", tmp_path, tell).run(
        OF_FAMILIES if name.startswith("family") else SECONDS, 10**6
    )
    findings = [
        fields for event, fields in told if event == "finding" and not fields["kind"].startswith("slow")
    ]
    assert findings == []
    event, end = told[-1]
    assert event == "end"
    assert end["inputs"] > 1


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(campaign, "HANG_S", 3.0)
    return tmp_path / "kept"


def run(name: str, kept: Path) -> Outcome:
    return run_target(f"tests.doubles.planted_targets:{name}", seed="1", seconds=0.5, inputs=10**6, keep=kept)


@pytest.mark.parametrize(
    ("name", "kind"), [("raises", "error"), ("dies", "death"), ("hangs", "hang"), ("burns", "slow")]
)
def test_a_fault_is_found_and_its_input_kept(kept: Path, name: str, kind: str) -> None:
    finding = run(name, kept).findings[0]
    assert finding.kind.startswith(kind)
    assert Path(finding.file).read_bytes() != b"seed"


def test_a_target_that_cannot_begin_is_no_finding(kept: Path) -> None:
    with pytest.raises(ProcessFailedError, match="cannot begin"):
        run("never", kept)


def test_the_targets_are_found_by_name() -> None:
    assert [target_named(name).name for name in NAMES] == list(NAMES)
    assert "scripts.lab.fuzz" in sys.modules
