"""scripts/study sybils in little: what it promises holds."""

from __future__ import annotations

from scripts.studies import sybils


def test_a_few_attackers() -> None:
    report = sybils.run(sybils.parse(["--quick"]))
    assert report["broken"] == []
    assert all(case["kept_out"] == case["lost"] == 0 for kind in ("key", "keeper") for case in report[kind])
    few, many = report["index"]
    assert few["gap_s"] == 0 < many["gap_s"] < 20


def test_as_many_networks_as_places_are_told() -> None:
    case = sybils.attack_key(512, 512)
    assert case["kept_out"] == 1
    assert sybils.broken({"key": [case | {"networks": 100}], "keeper": [], "index": []})
