"""What the study of real files makes and compares, without llama.cpp."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scripts.studies.real_types import wider
from scripts.studies.real_types.main import OURS, by_transformers, difference, two_spans
from tests.shards.gguf_files import write_gguf_llama

IDS = list(range(3, 30))


def test_a_wider_model_computes_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wider, "MULTIPLE", 384)
    source = write_gguf_llama(tmp_path, "Q8_0")
    wide = wider.write_wider(source, tmp_path / "wide.gguf", 2)
    for options in OURS.values():
        before, after = (two_spans(file, IDS, options)[0] for file in (source, wide))
        found = difference(after, before)
        assert found["largest"] < 1e-5
        assert found["same"] == 1
    assert difference(by_transformers(wide, IDS), after)["largest"] < 1e-5


def test_differences_are_told() -> None:
    expected = torch.eye(4) * 8
    found = difference(expected + 3, expected)  # logits have no zero
    assert found == pytest.approx({"largest": 0, "kl": 0, "same": 1}, abs=1e-12)
    found = difference(expected.flip(0), expected)
    assert found["largest"] > 1
    assert found["kl"] > 5
    assert found["same"] == 0
