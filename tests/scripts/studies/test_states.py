"""scripts/study states: what it measures is there, for each way of computing."""

from __future__ import annotations

import sys

import pytest

from scripts.studies import states
from swarm_node.shards.formats.blocks.state import ShortConvConfig


def test_a_shape_in_every_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(states.SHAPES, "lfm2-1.2b", (256, ShortConvConfig(64, 3)))
    words = ["states", "--shape", "lfm2-1.2b", "--prompt", "40", "--seconds", "0.01"]
    monkeypatch.setattr(sys, "argv", words)
    assert states.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[17:].split(" token")[0].strip() for line in lines] == [*states.WAYS]
