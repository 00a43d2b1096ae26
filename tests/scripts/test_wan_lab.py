"""scripts/wan_lab without a network: what it understands, the bound it compares with, what it refuses."""

from __future__ import annotations

import os

import pytest

from scripts.lab.wan_lab.bench import overheads
from scripts.lab.wan_lab.bound import PETALS_CONDITIONS, Condition, decode_bound, prefill_bound, ways
from scripts.lab.wan_lab.kernel import LabUnavailableError, check_kernel
from scripts.lab.wan_lab.network import Link
from scripts.lab.wan_lab.schedule import parse_schedule
from scripts.lab.wan_lab.units import chance, rate, seconds

LINK = Condition("1 Mbit/s, 20 ms", 1e6, 0.02)


def test_times_rates_and_chances() -> None:
    assert [seconds(text) for text in ("50ms", "2s", "0.1", "250us")] == [0.05, 2, 0.1, 250e-6]
    assert [rate(text) for text in ("100mbit", "1gbit", "9600", "none")] == [1e8, 1e9, 9600, None]
    assert [chance(text) for text in ("1%", "0.25")] == [0.01, 0.25]
    for parse, text in ((seconds, "1h"), (seconds, "-1s"), (rate, "fast"), (chance, "1ms"), (rate, "1e9")):
        with pytest.raises(ValueError, match=text):
            parse(text)


def test_links_that_cannot_be_are_refused() -> None:
    for wrong in ({"latency_s": -1}, {"jitter_s": float("nan")}, {"loss": 1.1}, {"rate": 0}, {"rate": 1e15}):
        with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0]):
            Link(**wrong)


def test_a_schedule_is_sorted_and_names_its_machines() -> None:
    changes = parse_schedule(
        "2s heal a,b c # both\n1s cut a,b c; 3s link a b rtt=9ms rate=none; 4s machine a up=1mbit"
    )
    assert [(change.at, change.machines) for change in changes] == [
        *((1, ("a", "b", "c")), (2, ("a", "b", "c")), (3, ("a", "b")), (4, ("a",)))
    ]
    for text, word in (
        ("1s cot a", "cot"),
        ("cut a", "cut"),
        ("1s all speed=3", "speed"),
        ("1s link a b", "link"),
    ):
        with pytest.raises(ValueError, match=word):
            parse_schedule(text)


def test_the_bound_of_decoding_is_compute_ways_and_bytes() -> None:
    assert (ways(3, chain=True), ways(3, chain=False)) == (4, 6)
    chained = decode_bound(LINK, chain=True, compute_s=[0.001, 0.002, 0.003], local_s=0.004, row_bytes=500)
    assert chained.trips_s == pytest.approx(4 * 0.01)
    assert chained.wire_s == pytest.approx(4 * 500 * 8 / 1e6)
    assert chained.seconds == pytest.approx(0.006 + 0.004 + 0.04 + 0.016)
    relayed = decode_bound(LINK, chain=False, compute_s=[0.001, 0.002, 0.003], local_s=0.004, row_bytes=500)
    assert relayed.seconds - chained.seconds == pytest.approx(2 * 0.01 + 2 * 0.004)
    run = {"decode_s": 0.070, "queue_s": [0.001] * 3, "codec_s": [0.0002] * 3}
    assert overheads(run, chained.seconds)["rest_s"] == pytest.approx(0.004 - 0.003 - 0.0006)


def test_the_bound_of_a_prompt_is_the_slowest_of_computing_and_sending() -> None:
    sizes = {"hops": 3, "tokens": 1000, "row_bytes": 500, "cores": 2}
    computing = prefill_bound(LINK, chain=True, compute_s=10.0, **sizes)
    assert computing == pytest.approx(10 / 2 + 4 * 0.01)
    sending = prefill_bound(LINK, chain=True, compute_s=1.0, **sizes)
    assert sending == pytest.approx(4.0 + 4 * 0.01)
    assert prefill_bound(LINK, chain=False, compute_s=1.0, **sizes) == pytest.approx(12.0 + 6 * 0.01)


def test_the_conditions_are_those_of_the_paper() -> None:
    assert [(each.rate, each.rtt_s) for each in PETALS_CONDITIONS] == [(1e9, 0.005), (1e8, 0.005), (1e8, 0.1)]


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabUnavailableError, match=r"Linux|root"):
        check_kernel()
