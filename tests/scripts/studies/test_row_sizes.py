"""scripts/study row_sizes: no row of an honest model is taken for a lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.lab.tiny_model import BLOCKS, write_tiny_model
from scripts.studies import row_sizes


def test_a_model_of_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = row_sizes.measure(str(write_tiny_model(tmp_path)), "Any text. " * 40, tokens=96, window=32)
    assert report["alarms"] == []
    assert len(report["blocks"]) == BLOCKS
    assert all(0 < smallest <= min(first, other) for smallest, first, other in report["blocks"])
    row_sizes.show(report)
    assert f"| {BLOCKS - 1} | " in capsys.readouterr().out


def test_a_row_that_no_model_computes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_sizes.Cache, "through", lambda self, x, start, first, end: x * 0)
    report = row_sizes.measure(str(write_tiny_model(tmp_path)), "Any text. ", tokens=8, window=8)
    assert any("nothing but zeros" in alarm for alarm in report["alarms"])
