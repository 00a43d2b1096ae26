"""Checkpoints of every quantizer: the model with the values that the stored numbers stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.qtypes import row_bytes
from tests.shards.families.models import ids, logits, saved
from tests.shards.families.test_families import EXECUTORS, assert_close, computed, through

from .writers import QUANTIZERS, quantize_directory

CASES = ("llama", "qwen3_moe")


@pytest.fixture(scope="module", params=CASES)
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A small model as transformers writes it."""
    folder = tmp_path_factory.mktemp(request.param)
    saved(request.param, folder)
    return request.param, folder


def with_values(folder: Path, values: dict[str, torch.Tensor], target: Path) -> Any:
    """transformers' model with these values."""
    target.mkdir()
    save_file(
        {name: value.contiguous() for name, value in values.items()},
        target / "model.safetensors",
        {"format": "pt"},
    )
    (target / "config.json").write_text((folder / "config.json").read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    return model.eval()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_equals_the_model_with_those_values(
    name: str, plain: tuple[str, Path], tmp_path: Path, sessions: Callable[..., Any]
) -> None:
    _, folder = plain
    quantized, values = quantize_directory(folder, tmp_path / "quantized", QUANTIZERS[name])
    model = with_values(folder, values, tmp_path / "values")
    wanted = logits(model)
    with open_checkpoint(str(quantized)) as checkpoint:
        changed = [
            each for each in values if checkpoint.has(each) and checkpoint.manifest[each].qtype != "F32"
        ]
        assert changed
        for each in changed:
            raw, info = checkpoint.tensor(each), checkpoint.manifest[each]
            assert raw.qtype == info.qtype
            assert raw.nbytes == info.nbytes == raw.rows * row_bytes(raw.qtype, raw.cols)
            torch.testing.assert_close(torch.from_numpy(raw.dequantize()), values[each], rtol=1e-6, atol=0)
        assert_close(computed(checkpoint, ids(model)), wanted)
        for kind in EXECUTORS:
            assert_close(through(checkpoint, ids(model), sessions, **kind), wanted)
