"""scripts/bench: the figures it computes, its processes, and what it says to wrong input."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.lab.bench.clients import StreamRun, summarize
from scripts.lab.bench.engine import read_bytes_per_s
from scripts.lab.bench.figures import medians, percentile, spread_ms
from scripts.lab.bench.parts import add_shares, interference_costs
from scripts.lab.processes.child import ProcessFailedError
from scripts.lab.processes.worker import Worker, run_in_process
from scripts.lab.prompts import long_prompt


def test_percentiles_are_values_that_were_seen() -> None:
    values = [0.005, 0.001, 0.004, 0.002, 0.003]
    assert [percentile(values, share) for share in (0.0, 0.2, 0.21, 0.5, 0.99, 1.0)] == [
        *(0.001, 0.001, 0.002, 0.003, 0.005, 0.005)
    ]
    assert percentile([], 0.5) == 0.0
    assert spread_ms([0.001] * 99 + [1.0]) == {"p50": 1.0, "p90": 1.0, "p99": 1.0, "max": 1000.0}


def test_medians_are_of_numbers_and_keep_the_runs() -> None:
    runs = [{"a": 1, "b": "x"}, {"a": 5, "b": "y"}, {"a": 2, "b": "z"}]
    assert medians(runs) == {"a": 2, "runs": runs}
    runs = [{"errors": 0, "speed": 4.0}, {"errors": 3}, {"errors": 0, "speed": 6.0}]
    assert medians(runs) == {"errors": 3, "speed": 5.0, "runs": runs}, "no error hides behind a median"


def test_streams_are_counted_while_all_of_them_decode() -> None:
    fast = StreamRun(times=[1.0 + 0.1 * n for n in range(21)], tokens=21)  # from 1 to 3 s, 10 tokens/s
    late = StreamRun(times=[2.0 + 0.2 * n for n in range(11)], tokens=11)  # from 2 to 4 s, 5 tokens/s
    failed = StreamRun(error="BusyError: full")
    figures = summarize([fast, late, failed], 0.0)
    assert figures["errors"] == 1
    assert figures["first_error"] == "BusyError: full"
    assert figures["aggregate_tokens_per_s"] == pytest.approx(15, abs=1.01)  # 2 to 3 s
    assert figures["with_prefill_tokens_per_s"] == pytest.approx(32 / 4)
    assert figures["fairness"] == pytest.approx(0.5)
    assert figures["between_tokens_p50_ms"] == pytest.approx(100)
    assert figures["between_tokens_p99_ms"] == pytest.approx(200)
    assert summarize([failed], 0.0)["errors"] == 1


def test_streams_are_compared_with_the_engine_alone() -> None:
    engine = [
        {"batches": [{"batch": 1, "tokens_per_s": 100.0}, {"batch": 8, "tokens_per_s": 400.0}]},
        {"batches": [{"batch": 1, "tokens_per_s": 150.0}, {"batch": 8, "tokens_per_s": 500.0}]},
    ]
    streams: dict[str, Any] = {
        "1": {"aggregate_tokens_per_s": 75.0},
        "3": {"aggregate_tokens_per_s": 90.0},
        "32": {"aggregate_tokens_per_s": 600.0},
        "64": {"errors": 64},
    }
    add_shares(streams, engine)
    assert [figures.get("of_engine") for figures in streams.values()] == [0.5, None, 1.2, None]


def test_interference_is_what_a_step_computes_longer_beside_a_prompt() -> None:
    found = {
        "alone": {"hops": [{"compute_ms": 2.0}, {"compute_ms": 3.0}]},
        "beside": {"hops": [{"compute_ms": 12.0}, {"compute_ms": 23.0}], "tokens": 10},
    }
    before = [{"engine": {"batches": 10, "tokens": 100}}] * 2
    after = [{"engine": {"batches": 20, "tokens": 510}}] * 2
    costs = interference_costs(found, 2.0, before, after)
    assert costs["extra_compute_ms"] == pytest.approx(15)
    assert costs["rows_per_batch"] == pytest.approx(41)
    assert costs["expected_growth_ms"] == 2 * costs["slice_target_ms"]
    assert costs["prefill_tokens_per_s"] == pytest.approx(200)


def test_long_prompts_have_their_length_and_differ_from_the_first_token() -> None:
    first, second = (long_prompt(lambda text: [ord(char) for char in text], 100, n) for n in (1, 2))
    assert len(first) == len(second) == 100
    assert first[:8] != second[:8]


def test_bandwidth_is_plausible() -> None:
    assert 1e8 < read_bytes_per_s(4_000_000, 0.02) < 1e13


def test_a_worker_returns_waits_and_tells_what_went_wrong() -> None:
    assert run_in_process("scripts.lab.bench.figures:percentile", values=[3, 1, 2], share=1.0) == 3
    with pytest.raises(ProcessFailedError, match="no_such_function"):
        run_in_process("scripts.lab.bench.figures:no_such_function")
    worker = Worker("scripts.lab.bench.figures:rss_mb")
    with pytest.raises(ProcessFailedError, match="before 'ready'"):
        worker.wait_ready()
    worker.close()
    assert worker.process.poll() is not None
