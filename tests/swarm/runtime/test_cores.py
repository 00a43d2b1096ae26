from __future__ import annotations

import os

import psutil
import pytest

from swarm_node.swarm.runtime import cores


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    return tmp_path


@pytest.fixture
def machine(monkeypatch):
    def be(logical: int, real: int | None, usable: int) -> None:
        monkeypatch.setattr(psutil, "cpu_count", lambda logical=True, n=logical: n if logical else real)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)), raising=False)

    return be


@pytest.mark.parametrize(
    ("logical", "real", "usable", "quota", "threads"),
    [
        (8, 4, 8, None, 4),  # hyper-threads do not count
        (8, 4, 4, None, 2),  # half of the machine
        (8, 4, 1, None, 1),
        (8, None, 8, None, 8),
        (16, 8, 16, "250000 100000", 2),
        (16, 8, 16, "max 100000", 8),
        (2, 2, 2, "50000 100000", 1),
    ],
)
def test_threads(cgroup, machine, logical, real, usable, quota, threads):
    machine(logical, real, usable)
    if quota:
        (cgroup / "cpu.max").write_text(quota + "\n")
    assert cores.default_threads() == threads
