"""One target after another, each in a process of its own, and what came of them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..processes.child import ProcessFailedError
from ..processes.worker import Worker
from .worker import LAST

HANG_S = 180.0
"""Seconds without a word after which a worker counts as hung. It speaks twice a second; the start (kernels,
torch) takes its time, more so on a busy machine."""
GROWTH_BYTES = 96 * 2**20
"""Resident bytes that a worker may grow by after it is warm. The allocator's arenas wander by tens of MiB."""


@dataclass(slots=True)
class Finding:
    """``kind``: what happened. ``file``: where the input was put."""

    target: str
    kind: str
    error: str = ""
    file: str = ""


@dataclass(slots=True)
class Outcome:
    """Of one target. ``paths``: different ends that inputs came to. Memory in bytes."""

    target: str
    seconds: float = 0.0
    inputs: int = 0
    paths: int = 0
    memory_at_warm_up: int = 0
    memory: int = 0
    findings: list[Finding] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_target(
    name: str,
    *,
    seed: str,
    seconds: float,
    inputs: int,
    keep: Path,
    on_count: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Run one target until its time or its inputs are used up. ``keep``: a folder for inputs that found
    something.

    A worker that dies or hangs is a finding; what is left of the time goes to another one.
    """
    outcome = Outcome(name)
    began = time.monotonic()
    end = began + seconds
    tries = 0
    while tries == 0 or (time.monotonic() < end - 1 and outcome.inputs < inputs and tries < 20):
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            options = {"name": name, "seed": f"{seed}/{tries}", "seconds": max(1.0, end - time.monotonic())}
            options |= {"inputs": inputs - outcome.inputs, "folder": folder}
            _run_worker(options, outcome, keep, on_count)
        tries += 1
        if not outcome.findings or outcome.findings[-1].kind not in ("hang", "death"):
            break
    outcome.seconds = time.monotonic() - began
    grown = outcome.memory - outcome.memory_at_warm_up
    if outcome.memory_at_warm_up and grown > GROWTH_BYTES:
        outcome.findings.append(Finding(name, f"growth: {grown / 2**20:.0f} MiB after it was warm"))
    return outcome


def _run_worker(
    options: dict[str, Any], outcome: Outcome, keep: Path, on_count: Callable[[int], None]
) -> None:
    folder = options["folder"]
    before = outcome.inputs
    begun = ended = hung = False
    worker = Worker("scripts.lab.fuzz.worker:fuzz", environment={"TMPDIR": folder}, **options)
    with closing(worker):
        try:
            while (event := worker.next_event(HANG_S)) is not None:
                outcome.inputs = before + event.get("inputs", outcome.inputs - before)
                on_count(outcome.inputs)
                begun = True
                if event["event"] == "finding":
                    data = bytes.fromhex(event["input"])
                    _keep(outcome, Finding(outcome.target, event["kind"], event["error"]), data, keep)
                elif event["event"] == "end":
                    ended = True
                    outcome.paths = event["outcomes"]
                    outcome.memory_at_warm_up = event["memory_at_warm_up"]
                    outcome.memory = event["memory"]
        except TimeoutError:
            hung = True
    text = worker.stderr[-3000:]
    if not begun:
        raise ProcessFailedError(f"the target {outcome.target} could not begin: {text}")
    if not ended:
        raw = Path(folder, LAST).read_bytes()
        data = raw[8 : 8 + int.from_bytes(raw[:8], "big")]
        _keep(outcome, Finding(outcome.target, "hang" if hung else "death", text), data, keep)


def _keep(outcome: Outcome, finding: Finding, data: bytes, keep: Path) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    number = len(outcome.findings) + 1
    path = keep / f"{outcome.target}-{number}.input"
    path.write_bytes(data)
    finding.file = str(path)
    outcome.findings.append(finding)
