"""scripts/study speculation: its verdict, and a small run of the real thing over a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.lab.tiny_model import write_tiny_model
from scripts.studies.speculation import measure as speculation_measure
from scripts.studies.speculation import simulated_table
from scripts.studies.speculation.main import by_group, failures, show


def _answer(group: str, times: float, *, identical: bool = True) -> dict[str, Any]:
    counts = {"passes": 10, "drafted": 20, "accepted": 9, "draft_s": 0.1}
    speeds = {"plain_tokens_per_s": 10.0, "tokens_per_s": 10.0 * times, "times": times, "ratios": [times]}
    return {"group": group, "name": f"{group} {times}", "identical": identical, **speeds, **counts}


def _report(*answers: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "round_trip_ms": 50.0, "new_tokens": 8, "repeat": 1, "answers": list(answers)}


def test_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    good = [_answer("repetitive", 1.6), _answer("plain", 0.96), _answer("draft", 2.6)]
    assert failures(_report(*good)) == []
    assert len(failures(_report(*good, _answer("plain", 0.94)))) == 2
    assert len(failures(_report(_answer("repetitive", 1.4)))) == 1
    assert len(failures(_report(*good, _answer("draft", 9.0, identical=False)))) == 1
    assert len(failures(_report(*good, _answer("draft", 0.9), _answer("draft", 9.0)))) == 1
    assert by_group(_report(*good))["draft"] == [2.6]
    show(_report(*good))
    assert "| plain | plain 0.96 | 10.0 | 9.6 | 0.96 (0.96 to 0.96) | 10 | 20 | 9 | 0.10 s |" in (
        capsys.readouterr().out
    )


def test_the_verdict_on_simulated_routes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = simulated_table.CASES["copy of 200 tokens"]
    monkeypatch.setattr(simulated_table, "CASES", {"copy": copied})
    monkeypatch.setattr(simulated_table, "SEEDS", 1)
    report = simulated_table.simulated()
    assert len(report["simulated"]) == len(simulated_table.ROUTES)
    assert simulated_table.reaches(report)
    simulated_table.show_simulated(report)
    assert "| copy | at home |  | " in capsys.readouterr().out
    report["simulated"][0]["times"] = 29.9
    assert not simulated_table.reaches(report)


async def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_model(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    prompts = [
        ("repetitive", "echo", [{"role": "user", "content": "ab" * 20}], {}),
        ("plain", "dice", [{"role": "user", "content": "xyz"}], {"temperature": 1.0, "seed": 1}),
    ]
    monkeypatch.setattr(speculation_measure, "PROMPTS", prompts)
    threads = torch.get_num_threads()
    accepted = 0
    for which, group in enumerate(("repetitive", "plain")):
        answers = await speculation_measure._measure(
            which=which,
            model=str(tmp_path),
            draft=str(tmp_path),
            round_trip_ms=15.0,
            new_tokens=24,
            repeat=1,
            threads=1,
            wire_codec="none",
        )
        assert [each["group"] for each in answers] == [group, "draft", "draft model"]
        assert all(each["identical"] and each["times"] > 0 for each in answers)
        accepted += sum(each["accepted"] for each in answers)
        show(_report(*answers))
    assert accepted > 0, "how many is a matter of times, which a busy machine spoils"
    torch.set_num_threads(threads)
