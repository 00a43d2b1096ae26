"""scripts/chaos on a tiny model: every kind of fault once, with nothing lost and nothing left."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.lab.chaos.schedule import KINDS, Kind
from tests import ROOT
from tests.swarms.harness import MARK

pytestmark = [pytest.mark.swarm]

CHAOS = [sys.executable, "-m", "scripts.lab.chaos"]
ENDED_S = 30.0
SAID = ("hostile size", "hostile nan", "hostile rows", "clock skew", "full cache")
OF_STREAMS = [kind for kind in KINDS if not kind.name.startswith(SAID)]
"""Faults that a stream shows in another way if a daemon carries it. Others are of frames or of the node."""


def _chaos(*options: str, model: str = "tiny", timeout: float = 240) -> dict[str, Any]:
    done = subprocess.run(
        [*CHAOS, "--model", model, *options, "--json", "-"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["problems"] == []
    assert report["lost"] == report["doubled"] == report["differing"] == report["failed_generations"] == 0
    assert report["tokens"] == 64 * report["generations"] > 0
    return report


@pytest.mark.parametrize(("streams", "kinds"), [("direct", KINDS), ("daemon", OF_STREAMS)])
def test_every_kind_of_fault_costs_no_token(streams: str, kinds: Sequence[Kind]) -> None:
    faults = ",".join(dict.fromkeys(kind.name.partition(",")[0] for kind in kinds))
    report = _chaos("--rounds", "1", "--seed", "5", "--streams", streams, "--faults", faults)
    assert report["faults"] == {kind.name: 1 for kind in kinds}
    assert report["in_a_running_generation"] >= len(kinds) // 2, "faults were aimed at what is in use"
    for kind in ("kill -9", "frozen"):
        assert kind in report["stalls"], "it was noticed"
    assert report["false_bans"] == 0


def test_killed_nodes_cost_no_token_where_blocks_keep_states_and_drafts_err() -> None:
    report = _chaos("--kills", "8", "--draft", "--seed", "3", model="tiny-hybrid")
    assert report["faults"] == {"kill -9": 8}
    assert report["drafted"] > report["accepted"]


def test_no_process_outlives_it_when_it_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*CHAOS, "--kills", "1000", "--clients", "2", "--spans", "1", "--replicas", "2", "--verbose"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:  # until it kills
            if "kill -9" in line:
                break
        assert len(_running(tmp_path)) > 5
        process.kill()
        # Read to the end: whoever still holds the pipe still runs.
        process.communicate(timeout=ENDED_S)
        deadline = time.monotonic() + ENDED_S
        while (left := _running(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left
    finally:
        process.kill()
        process.wait()


def _running(folder: Path) -> dict[int, str]:
    """Processes that this module started and that keep their files in ``folder``."""
    found = {}
    for process in psutil.process_iter(["cmdline", "status"]):
        with contextlib.suppress(psutil.Error):  # of another user, or gone meanwhile
            environment = process.environ()
            mine = environment.get(MARK) == os.environ[MARK] and environment.get("TMPDIR", "").startswith(
                str(folder)
            )
            if mine and process.info["status"] != psutil.STATUS_ZOMBIE:
                found[process.pid] = " ".join(process.info["cmdline"] or [])[:100]
    return found
