"""How models of embeddings say what they pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swarm_node.shards.checkpoint.checkpoint import _pooling
from swarm_node.shards.formats.advice.pooling import Pooling, pooling_of_gguf
from swarm_node.swarm.errors import CheckpointError

STEPS = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}


def write(folder: Path, steps: object, **modes: Any) -> Path:
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return folder


@pytest.mark.parametrize(
    ("steps", "modes", "pooling"),
    [
        (STEPS, {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, Pooling.LAST),
        (STEPS[:2], {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 8}, Pooling.MEAN),
        (STEPS, {"pooling_mode_cls_token": True}, None),
        (STEPS, {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True}, None),
        (STEPS, {}, None),
        ([*STEPS[:2], DENSE], {"pooling_mode_mean_tokens": True}, None),
        (STEPS[:1], {}, None),
        ([STEPS[0], {**STEPS[1], "path": "../elsewhere"}], {"pooling_mode_mean_tokens": True}, None),
        ([STEPS[0], {**STEPS[1], "path": 3}], {}, None),
        ([STEPS[0], {**STEPS[1], "path": "x" * 5000}], {}, None),
        ([STEPS[0], {**STEPS[1], "path": "\0"}], {}, None),
        ({}, {}, None),
        (["Transformer", None], {}, None),
    ],
)
def test_what_a_directory_says(
    steps: object, modes: dict[str, Any], pooling: Pooling | None, tmp_path: Path
) -> None:
    assert _pooling(write(tmp_path, steps, **modes)) is pooling


def test_a_directory_without_steps_and_one_with_damaged_ones(tmp_path: Path) -> None:
    assert _pooling(tmp_path) is None
    (tmp_path / "modules.json").write_text("[" * 100)
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        _pooling(tmp_path)


@pytest.mark.parametrize(
    ("value", "pooling"),
    [(1, Pooling.MEAN), (3, Pooling.LAST), (0, None), (2, None), (True, None), ("1", None)],
)
def test_what_a_gguf_file_says(value: object, pooling: Pooling | None) -> None:
    assert pooling_of_gguf("qwen3", {"qwen3.pooling_type": value}) is pooling
    assert pooling_of_gguf("llama", {"qwen3.pooling_type": value}) is None
