"""Checkpoints of every quantizer: the model with the values that the stored numbers stand for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.files.tensor_files import TensorFiles
from swarm_node.shards.formats.hf import safetensors_reader
from swarm_node.shards.formats.hf.safetensors_reader import open_directory
from swarm_node.shards.formats.qtypes import row_bytes
from swarm_node.shards.formats.quantized.float8 import E4M3, E5M2
from swarm_node.shards.formats.quantized.source import stored_parts
from swarm_node.shards.formats.raw_tensor import RawTensor
from swarm_node.shards.formats.tensors import needed_tensors
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.types import Span
from tests.shards.families.models import ids, logits, saved, small_model
from tests.shards.families.test_families import EXECUTORS, assert_close, computed, through

from .writers import QUANTIZERS, fp8, quantize_directory

CASES = ("llama", "qwen3_moe")
UNUSED = ("input_scale", "input_scale_ub", "input_global_scale")


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


@dataclass(frozen=True)
class Quantized:
    """A quantized model; the values that its numbers stand for; what transformers computes with them."""

    folder: Path
    values: dict[str, torch.Tensor]
    tokens: torch.Tensor
    wanted: torch.Tensor


Quantize = Callable[[str], Quantized]


@pytest.fixture(scope="module")
def quantized_as(plain: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Quantize:
    """``quantized_as(name)``: of QUANTIZERS, the model ``plain``. It is made once for all tests."""

    @cache
    def quantized(name: str) -> Quantized:
        folder = tmp_path_factory.mktemp(f"{plain[0]}-{name}")
        made, values = quantize_directory(plain[1], folder / "quantized", QUANTIZERS[name])
        model = with_values(plain[1], values, folder / "values")
        return Quantized(made, values, ids(model), logits(model))

    return quantized


@pytest.mark.parametrize("name", QUANTIZERS)
def test_equals_the_model_with_those_values(
    name: str, quantized_as: Quantize, sessions: Callable[..., Any]
) -> None:
    quantized = quantized_as(name)
    values, wanted = quantized.values, quantized.wanted
    with open_checkpoint(str(quantized.folder)) as checkpoint:
        changed = [
            each for each in values if checkpoint.has(each) and checkpoint.manifest[each].qtype != "F32"
        ]
        assert changed
        for each in changed:
            raw, info = checkpoint.tensor(each), checkpoint.manifest[each]
            assert raw.qtype == info.qtype
            assert raw.nbytes == info.nbytes == raw.rows * row_bytes(raw.qtype, raw.cols)
            torch.testing.assert_close(torch.from_numpy(raw.dequantize()), values[each], rtol=1e-6, atol=0)
        assert_close(computed(checkpoint, quantized.tokens), wanted)
        for kind in EXECUTORS:
            assert_close(through(checkpoint, quantized.tokens, sessions, **kind), wanted)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((f"gptq{bits}", f"int4 (INT{bits}_32)") for bits in (2, 3, 4)),
        *((f"gptq{bits}-zeros", f"int4 (INT{bits}_32)") for bits in (2, 3, 4)),
        ("gptq8", "int8 (INT8_32)"),
        ("gptq-rows", "int4 (INT4_ROW)"),
        ("awq", "int4 (INT4_32)"),
        ("packed4", "int4 (INT4_32)"),
        ("packed5", "int8 (INT5_32)"),
        ("packed8", "int8 (INT8_ROW)"),
        ("packed8-zeros", "int8 (INT8_32_ZEROS)"),
        ("int8-zeros", "int8 (INT8_ROW_ZEROS)"),
        ("int8", "int8 (INT8_ROW)"),
        ("int8-tensor", "int8 (INT8_ROW)"),
        ("bnb8", "int8 (INT8_ROW)"),
        ("gptq-16", "int8 (INT4_16)"),
        ("nvfp4", "int8 (E2M1_16)"),
        ("mxfp4", "int4 (MXFP4)"),
        ("fp8", "float8 (F8_E4M3_32)"),
        ("mxfp8", "float8 (F8_E4M3_32)"),
        ("fp8-tensor", "float8 (F8_E4M3_ROW)"),
        ("float8-channel", "float8 (F8_E4M3_ROW)"),
        ("fbgemm", "float8 (F8_E4M3_ROW)"),
    ],
)
def test_kernels_hold_the_files_integers(
    name: str, form: str, quantized_as: Quantize, sessions: Callable[..., Any]
) -> None:
    """Without rounding: results are those of the file's values but for the rounding of activations."""
    quantized = quantized_as(name)
    tokens, wanted = quantized.tokens, quantized.wanted
    with open_checkpoint(str(quantized.folder)) as checkpoint:
        options = LoadOptions(kernels="native")
        span = load_backend(checkpoint, Span(0, checkpoint.config.n_blocks), options)
        assert form in span.weights.split(" + ")
        ours = through(checkpoint, tokens, sessions, quantize="auto", kernels="native")
        assert_close(ours, wanted)
        on_mlx = load_backend(checkpoint, Span(0, checkpoint.config.n_blocks), LoadOptions(device="mlx"))
        own = "float32" if form.startswith("float8") or form.endswith("_16)") else form.partition(" ")[2]
        assert any(each.endswith(own) for each in on_mlx.weights.split(" + "))
        assert_close(through(checkpoint, tokens, sessions, quantize="auto", device="mlx"), wanted)


def test_floats_with_two_bits_of_fraction_are_those_of_torch() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    for table, dtype in ((E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)):
        np.testing.assert_array_equal(table, every.view(dtype).float().numpy())


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_third_of_the_blocks_reads_a_third_of_the_bytes(
    name: str, quantized_as: Quantize, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized = quantized_as(name).folder
    sizes = {each: info.nbytes for each, info in open_directory(quantized).manifest.items()}
    read: set[str] = set()

    class Counting(TensorFiles):
        def tensor(self, name: str) -> RawTensor:
            read.add(name)
            return super().tensor(name)

    monkeypatch.setattr(safetensors_reader, "TensorFiles", Counting)
    with open_checkpoint(str(quantized)) as checkpoint:
        assert not read
        names = {
            each: checkpoint._source.stored(each)
            for each in needed_tensors(checkpoint.config, Span(1, 2), False)
        }
        wanted = {part for each in names.values() for part in stored_parts(each, sizes)}
        load_backend(checkpoint, Span(1, 2), LoadOptions(kernels="native"))
    assert {each for each in read if ".layers." in each} <= wanted
    assert {each for each in sizes if ".layers.1." in each} - wanted <= {
        each for each in sizes if each.endswith(UNUSED)
    }
    in_blocks = sum(size for each, size in sizes.items() if ".layers." in each)
    assert sum(sizes[each] for each in wanted) < 0.34 * in_blocks


def test_blocks_of_deepseek_that_end_early(tmp_path: Path, sessions: Callable[..., Any]) -> None:
    """Blocks of 128 rows and columns in matrices that are no multiple of it, and in one that is turned."""
    sizes = {"hidden_size": 192, "intermediate_size": 200, "moe_intermediate_size": 72, "kv_lora_rank": 80}
    sizes |= {"q_lora_rank": 136, "qk_nope_head_dim": 40, "v_head_dim": 24}
    model = small_model("deepseek_v3", **sizes)
    model.save_pretrained(tmp_path / "plain")
    quantized, values = quantize_directory(tmp_path / "plain", tmp_path / "quantized", fp8())
    wanted = logits(with_values(tmp_path / "plain", values, tmp_path / "values"))
    with open_checkpoint(str(quantized)) as checkpoint:
        expert = checkpoint.tensor("model.layers.1.mlp.experts.3.down_proj.weight")
        assert (expert.qtype, expert.shape) == ("F8_E4M3_128", (192, 72))
        assert checkpoint.tensor("model.layers.1.self_attn.k_b_proj.weight").qtype == "F32"
        assert_close(computed(checkpoint, ids(model)), wanted)
        for kind in EXECUTORS:
            assert_close(through(checkpoint, ids(model), sessions, **kind), wanted)


@pytest.mark.parametrize(
    "name", ["gptq4", "gptq-mixed", "awq", "packed4-zeros", "int8", "fp8", "nf4", "mxfp4"]
)
@pytest.mark.parametrize("case", ["phi3", "glm4", "cohere"])
def test_rows_of_fused_matrices_and_rows_in_order(case: str, name: str, tmp_path: Path) -> None:
    """Without decoding: q, k and v or gate and up in one matrix; rows that turn together, put in order."""
    saved(case, tmp_path / "plain")
    quantized, values = quantize_directory(tmp_path / "plain", tmp_path / "quantized", QUANTIZERS[name])
    model = with_values(tmp_path / "plain", values, tmp_path / "values")
    with open_checkpoint(str(quantized)) as checkpoint:
        for part in ("q", "k", "v"):
            assert checkpoint.tensor(f"model.layers.0.self_attn.{part}_proj.weight").qtype != "F32"
        assert_close(computed(checkpoint, ids(model)), logits(model))
        load_backend(checkpoint, Span(0, checkpoint.config.n_blocks), LoadOptions(kernels="native"))


@pytest.mark.parametrize("name", ["int8", "int8-zeros", "fp8", "float8-tensor", "float8-channel", "mxfp8"])
def test_experts_in_one_tensor(name: str, tmp_path: Path) -> None:
    """Stacks, as transformers saves them: quantized expert by expert, one behind the other."""
    quantizer = QUANTIZERS[name]
    _, folder = saved("qwen3_moe", tmp_path)
    stored: dict[str, torch.Tensor] = {}
    values: dict[str, torch.Tensor] = {}
    for stem, stack in as_stacks(load_file(folder / "model.safetensors"), stored).items():
        written = [quantizer.write("", matrix) for matrix in stack]
        for part in written[0][0]:
            end = part.removeprefix(".").removeprefix("weight").removeprefix("_")
            name_in_file = f"{stem}_{end}" if end else stem
            stored[name_in_file] = torch.stack([tensors[part] for tensors, _ in written])
        values[stem] = torch.stack([each for _, each in written])
    save_file(stored, folder / "model.safetensors")
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | {"quantization_config": quantizer.settings}))
    with open_checkpoint(str(folder)) as checkpoint:
        for stem, stack in values.items():
            for number, matrix in enumerate(stack):
                base = f"{stem.rpartition('.')[0]}.{number}"
                parts = ("gate_proj", "up_proj") if "gate_up" in stem else ("down_proj",)
                for part, wanted in zip(parts, matrix.chunk(len(parts)), strict=True):
                    raw = checkpoint.tensor(f"{base}.{part}.weight")
                    assert raw.qtype != "F32"
                    torch.testing.assert_close(torch.from_numpy(raw.dequantize()), wanted, rtol=1e-6, atol=0)


def as_stacks(tensors: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The experts' matrices, as transformers holds them; what is nothing of an expert goes to ``others``."""
    found: dict[str, list[torch.Tensor]] = {}
    for name, value in sorted(
        tensors.items(), key=lambda item: [int(part) if part.isdigit() else 0 for part in item[0].split(".")]
    ):
        match = re.fullmatch(r"(.*\.experts)\.\d+\.(gate|up|down)_proj\.weight", name)
        if match is None:
            others[name] = value
        else:
            found.setdefault(f"{match[1]}.{match[2]}", []).append(value)
    stacks: dict[str, torch.Tensor] = {}
    for name, matrices in found.items():
        base, _, kind = name.rpartition(".")
        if kind == "down":
            stacks[f"{base}.down_proj"] = torch.stack(matrices)
        elif kind == "gate":
            pairs = zip(matrices, found[f"{base}.up"], strict=True)
            stacks[f"{base}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in pairs])
    others |= {name: stack for name, stack in stacks.items() if stack.shape[-1] % 32}
    return {name: stack for name, stack in stacks.items() if name not in others}
