"""How a model's makers advise to sample, as its files say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swarm_node.client.params import chat_sampling
from swarm_node.shards.checkpoint.checkpoint import directory_config
from swarm_node.shards.formats.advice.sampling import NO_ADVICE, SamplingAdvice
from tests.shards.formats.test_config import BASE


@pytest.mark.parametrize(
    ("values", "given"),
    [
        ({}, {}),
        ({"temperature": 0.6, "top_p": 0.9, "top_k": 20}, {"temperature": 0.6, "top_p": 0.9, "top_k": 20}),
        ({"do_sample": True, "temperature": 1, "top_k": 40.0}, {"temperature": 1.0, "top_k": 40}),
        ({"do_sample": False, "temperature": 0.6}, {}),
        ({"temperature": True, "top_p": "0.9", "top_k": -1, "min_p": None}, {}),
        (
            {
                "temperature": float("nan"),
                "top_p": 0,
                "top_k": 2.5,
                "min_p": 7,
                "repetition_penalty": 10**400,
            },
            {},
        ),
    ],
)
def test_advice_of_a_generation_config(values: dict[str, Any], given: dict[str, float]) -> None:
    assert SamplingAdvice.of_generation_config(values).given() == given


def test_a_directory_without_advice_and_with(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    assert directory_config(tmp_path).sampling == NO_ADVICE
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    assert directory_config(tmp_path).sampling == SamplingAdvice(temperature=0.6)


def test_advice_of_a_gguf_file() -> None:
    metadata = {
        "general.sampling.temp": float(np.float32(0.95)),
        "general.sampling.top_k": -1,
        "general.sampling.penalty_repeat": 1.1,
        "temperature": 0.1,
    }
    given = SamplingAdvice.of_gguf(metadata).given()
    assert given == {"temperature": 0.95, "repetition_penalty": 1.1}


def test_a_chat_samples_as_advised_or_as_most_chats_do() -> None:
    assert chat_sampling(NO_ADVICE) == {"temperature": 0.7, "top_p": 0.95}
    assert chat_sampling(SamplingAdvice(temperature=0.6, top_k=20)) == {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
    }
