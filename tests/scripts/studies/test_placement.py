"""scripts/study churn and scripts/study placement in little: what they report is there, and holds."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from argparse import Namespace

import pytest

from scripts.studies.churn import main as churn
from scripts.studies.placement import main as placement_script


def test_a_small_day_of_churn_and_its_picture() -> None:
    report = churn.run(churn.parse(["--quick", "--nodes", "40", "--seed", "3"]))
    assert report["holes_by_moves"] == 0
    assert report["events"]["come"] > 0
    assert report["covered"] > 0.9
    assert report["routes"]["asked"] > report["routes"]["none"]
    assert {"announce", "read", "plan_join", "find_route"} <= set(report["costs"])
    drawn = ET.fromstring(churn.picture(report))
    assert len(drawn.findall(".//{http://www.w3.org/2000/svg}polyline")) == 4


def test_a_day_is_the_same_again() -> None:
    first, second = (churn.run(churn.parse(["--quick", "--nodes", "12", "--hours", "0.5"])) for _ in range(2))
    for told in ("events", "joins", "moves", "holes", "covered", "samples"):
        assert first[told] == second[told]


def test_plans_of_small_clusters_are_near_the_optimum() -> None:
    report = placement_script.run(Namespace(clusters=3, seed=5))
    for kind in ("planned", "planned beside pinned nodes"):
        assert 1 - 1e-6 <= report["kinds"][kind]["worst"] <= placement_script.WITHIN
    assert report["kinds"]["one after another"]["mean"] >= 1 - 1e-6


def test_what_cannot_be_simulated_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        churn.parse(["--nodes", "0"])
    assert refused.value.code == 2
    assert "whole number above 0" in capsys.readouterr().err
