"""Each target of scripts/fuzz for a moment, and a campaign that finds what is there to be found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from fuzzing import campaign
from fuzzing.all_targets import NAMES, target_named
from fuzzing.campaign import Outcome, run_target
from fuzzing.worker import Fuzzer
from worker_process import WorkerFailedError

SECONDS = 0.2
"""For each target: what it finds in so short a time is there for everybody to find."""

PLANTED = """
import os, time
from .target import Prepared, Target

def target(name, run, **options):
    return Target(name, lambda: Prepared([b"seed"], run), **options)

def raises(data):
    if data != b"seed":
        raise KeyError("not a way to refuse")
    return ""

def dies(data):
    if data != b"seed":
        os.abort()
    return ""

def hangs(data):
    while data != b"seed":
        time.sleep(1)
    return ""

def burns(data):
    end = time.process_time() + (0.05 if data != b"seed" else 0)
    while time.process_time() < end:
        pass
    return ""

def never_begins():
    raise RuntimeError("cannot begin")

TARGETS = [
    target("raises", raises), target("dies", dies), target("hangs", hangs),
    target("burns", burns, slow_s=0.04), Target("never", never_begins),
]
"""


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_found_in_a_moment(name: str, tmp_path: Path) -> None:
    told: list[tuple[str, dict[str, Any]]] = []

    def tell(event: str, **fields: Any) -> None:
        told.append((event, fields))

    Fuzzer(target_named(name), f"1/{name}", tmp_path, tell).run(SECONDS, 10**6)
    findings = [
        fields for event, fields in told if event == "finding" and not fields["kind"].startswith("slow")
    ]
    assert findings == []
    event, end = told[-1]
    assert event == "end"
    assert end["inputs"] > 1


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package in which every target has a fault of its own."""
    source = Path(campaign.__file__).parent
    copy = tmp_path / "scripts" / "fuzzing"
    copy.mkdir(parents=True)
    for file in source.glob("*.py"):
        (copy / file.name).write_text(file.read_text())
    (copy / "planted.py").write_text(PLANTED)
    (copy / "all_targets.py").write_text(
        "from .planted import TARGETS\n"
        "def target_named(name):\n    return {target.name: target for target in TARGETS}[name]\n"
    )
    monkeypatch.setattr(campaign, "__file__", str(copy / "campaign.py"))
    monkeypatch.setattr(campaign, "HANG_S", 3.0)
    return tmp_path / "kept"


def run(name: str, kept: Path) -> Outcome:
    return run_target(name, seed="1", seconds=0.5, inputs=10**6, keep=kept)


@pytest.mark.parametrize(
    ("name", "kind"), [("raises", "error"), ("dies", "death"), ("hangs", "hang"), ("burns", "slow")]
)
def test_a_fault_is_found_and_its_input_kept(planted: Path, name: str, kind: str) -> None:
    finding = run(name, planted).findings[0]
    assert finding.kind.startswith(kind)
    assert Path(finding.file).read_bytes() != b"seed"


def test_a_target_that_cannot_begin_is_no_finding(planted: Path) -> None:
    with pytest.raises(WorkerFailedError, match="cannot begin"):
        run("never", planted)


def test_the_targets_are_found_by_name() -> None:
    assert [target_named(name).name for name in NAMES] == list(NAMES)
    assert "fuzzing" in sys.modules
