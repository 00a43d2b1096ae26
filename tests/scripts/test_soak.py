"""scripts/soak: its verdict finds each kind of leak, and nothing where there is none."""

from __future__ import annotations

import random
from dataclasses import asdict, replace

import pytest

from scripts.lab.soak.__main__ import print_tables
from scripts.lab.soak.verdict import (
    GROWTH_MB,
    SLOPE_FROM_S,
    Sample,
    log_problems,
    node_problems,
    second_half_growth,
    slope,
)

IDLE = Sample(
    at=0.0,
    rss_mb=400.0,
    fds=18,
    threads=4,
    tasks=13,
    sessions=0,
    connections=0,
    queued=0,
    sequences=0,
    used_slots=0,
    reserved_slots=0,
    cached_slots=0,
    used_states=0,
    reserved_states=0,
    cached_states=0,
    p2pd_rss_mb=60.0,
    p2pd_fds=14,
)
"""A node before anybody came."""


def _run(seconds: float, mb_per_s: float = 0.0, noise_mb: float = 3.0) -> list[Sample]:
    """Samples under load: memory jumps by 50 MB while caches fill, then grows steadily."""
    rng = random.Random(3)
    return [
        replace(
            IDLE,
            at=at,
            rss_mb=450 + mb_per_s * at + rng.uniform(-noise_mb, noise_mb),
            sessions=rng.randrange(9),
            sequences=rng.randrange(9),
            used_slots=rng.randrange(500),
        )
        for at in [seconds * n / 200 for n in range(201)]
    ]


def test_a_node_that_gave_everything_back_has_no_problem() -> None:
    final = replace(IDLE, at=1800.0, rss_mb=455.0, fds=IDLE.fds + 1, cached_slots=900, threads=6)
    assert node_problems(IDLE, _run(1800), final) == []
    assert node_problems(IDLE, _run(20), final) == []


@pytest.mark.parametrize(
    "what",
    [
        "sessions",
        "connections",
        "queued",
        "sequences",
        "used_slots",
        "reserved_slots",
        "used_states",
        "tasks",
    ],
)
def test_one_thing_left_is_a_leak(what: str) -> None:
    final = replace(IDLE, **{what: getattr(IDLE, what) + 1})
    (problem,) = node_problems(IDLE, _run(1800), final)
    assert what in problem


@pytest.mark.parametrize("what", ["fds", "p2pd_fds", "threads"])
def test_many_descriptors_more_are_a_leak(what: str) -> None:
    final = replace(IDLE, **{what: getattr(IDLE, what) + 17})
    (problem,) = node_problems(IDLE, _run(1800), final)
    assert problem.startswith(what)


def test_memory_that_grows_steadily_is_found_through_the_noise() -> None:
    allowed = GROWTH_MB["rss_mb"] / 900
    assert node_problems(IDLE, _run(1800, mb_per_s=0.7 * allowed), IDLE) == []
    (problem,) = node_problems(IDLE, _run(1800, mb_per_s=1.3 * allowed), IDLE)
    assert problem.startswith("rss_mb grew by")
    # A run too short to have a steady half is judged by where it ends.
    short = _run(SLOPE_FROM_S / 2, mb_per_s=1.0)
    assert node_problems(IDLE, short, IDLE) == []
    (problem,) = node_problems(IDLE, short, replace(IDLE, rss_mb=IDLE.rss_mb + 400))
    assert problem.startswith("rss_mb went from 400 to 800")


def test_the_line_is_the_one_of_least_squares() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert slope([(0, 0), (1, 1), (2, 0)]) == pytest.approx(0)
    assert slope([(1, 5)]) == slope([(1, 5), (1, 6)]) == 0
    assert second_half_growth(_run(1000, mb_per_s=0.01, noise_mb=0), "rss_mb") == pytest.approx(5)


def test_faults_of_the_node_are_told_from_those_of_peers() -> None:
    harmless = "12:00 WARNING swarm_node.node event=slow\n12:01 INFO swarm_node event=peer_refused error=x\n"
    assert log_problems(harmless) == []
    bad = (
        "12:02 ERROR swarm_node.node.engine.engine event=deliver_failed\nTraceback (most recent call last):\n"
    )
    where = '  File "engine.py", line 7, in deliver\n    give(1)\n'
    assert log_problems(harmless + bad + where + "KeyError: 'x'\n" + harmless) == [
        "log: 12:02 ERROR swarm_node.node.engine.engine event=deliver_failed",
        "log: File \"engine.py\", line 7, in deliver KeyError: 'x'",
    ]
    assert len(log_problems(harmless + bad)) == 2


def test_the_highest_is_never_below_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    """In a short soak a node takes a little more while all is given back, after the last sample."""
    start, end = (asdict(replace(IDLE, rss_mb=rss_mb)) for rss_mb in (411.0, 433.0))
    node = {"blocks": "0-1", "start": start, "samples": [asdict(replace(IDLE, rss_mb=422.0))], "final": end}
    done = {"polite": {}, "hostile": {}, "killed": 0, "repairs": 0, "busy": 0}
    print_tables({"seconds": 6.0, "nodes": [node], "done": done, "problems": []})
    (line,) = (
        line for line in capsys.readouterr().err.splitlines() if " rss mb " in line and "p2pd" not in line
    )
    assert [int(word) for word in line.split() if word.isdigit()] == [411, 433, 433]
