"""Quantized checkpoints that are damaged or made to harm: one of our errors, or a model of finite numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.quantized.settings import quantization
from swarm_node.shards.formats.values.fields import Fields
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.errors import CheckpointError, ModelError, UnsupportedModelError
from swarm_node.swarm.types import Span
from tests.shards.families.models import small_model

from .writers import QUANTIZERS, Tensors, quantize_directory

MATRIX = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    small_model("llama", num_hidden_layers=2).save_pretrained(folder)
    document = json.loads((folder / "config.json").read_text())
    assert document["hidden_size"] == 64  # groups of 32
    return folder


def gone(tensors: Tensors, name: str) -> None:
    del tensors[name]


def halved(tensors: Tensors, name: str) -> None:
    value = tensors[name]
    tensors[name] = value[: len(value) // 2].clone() if value.ndim else value.reshape(1, 1)


def longer(tensors: Tensors, name: str) -> None:
    value = tensors[name].reshape(-1)
    tensors[name] = torch.cat([value, value])


def turned(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name].T.contiguous() if tensors[name].ndim == 2 else tensors[name][None]


def of_another_type(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name].to(torch.float64)


def of_few_bytes(tensors: Tensors, name: str) -> None:
    tensors[name] = torch.tensor([1, 2, 3], dtype=torch.uint8)


def a_truth_value(tensors: Tensors, name: str) -> None:
    tensors[name] = torch.tensor(True)


def empty(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name].reshape(-1)[:0].clone()


def without_shape(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name].reshape(-1)[0].clone()


def bytes_of(number: int) -> Callable[[Tensors, str], None]:
    def fill(tensors: Tensors, name: str) -> None:
        value = tensors[name].clone()
        value.reshape(-1).view(torch.uint8).fill_(number)
        tensors[name] = value

    fill.__name__ = f"bytes of {number}"
    return fill


CHANGES = (gone, halved, longer, turned, of_another_type, of_few_bytes, a_truth_value)
CHANGES += (empty, without_shape)
CHANGES += tuple(map(bytes_of, (0, 1, 0x7F, 0x80, 0xFF)))


def quantized_mlp(name: str, plain: Path, target: Path) -> Path:
    """Only what is beside MATRIX: opening and writing take time for each tensor."""
    whole = QUANTIZERS[name]
    beside = MATRIX.removesuffix("up_proj")

    def takes(each: str, value: torch.Tensor) -> bool:
        return each.startswith(beside) and whole.takes(each, value)

    folder, _ = quantize_directory(plain, target, replace(whole, takes=takes))
    assert refusal(folder) == ""  # as it is
    return folder


def opened_and_loaded(folder: Path) -> None:
    with open_checkpoint(str(folder)) as checkpoint:
        for each in checkpoint.manifest:
            if MATRIX in each:
                raw = checkpoint.tensor(each)
                assert np.isfinite(raw.dequantize()).all()
        load_backend(checkpoint, Span(1, 2), LoadOptions(kernels="native"))


def refusal(folder: Path) -> str:
    """What is said of it; nothing where it is taken."""
    try:
        opened_and_loaded(folder)
    except ModelError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_stored_tensor_changed(name: str, plain: Path, tmp_path: Path) -> None:
    quantized = quantized_mlp(name, plain, tmp_path / "quantized")
    path = quantized / "model.safetensors"
    kept = load_file(path)
    stored = [each for each in kept if each.startswith(MATRIX)]
    refused = 0
    for each in stored:
        for change in CHANGES:
            tensors = dict(kept)
            change(tensors, each)
            save_file(tensors, path)
            said = refusal(quantized)
            refused += bool(said)
            assert len(said.splitlines()) <= 2, (each, change.__name__)
            assert not said or any(part in said for part in (str(quantized), "tensor ", MATRIX))
    assert refused > len(stored)


def changed(folder: Path, tensors: Tensors) -> Path:
    """Of the matrix: ``tensors`` in the place of those with these ends."""
    kept = load_file(folder / "model.safetensors")
    found = {f"{MATRIX}.{end}": value for end, value in tensors.items()}
    save_file(kept | found, folder / "model.safetensors")
    return folder


def test_a_group_that_is_not_there(plain: Path, tmp_path: Path) -> None:
    folder, _ = quantize_directory(plain, tmp_path / "q", QUANTIZERS["gptq4"])
    index = torch.zeros(64, dtype=torch.int32)
    index[5] = 2
    with pytest.raises(CheckpointError, match=r"names group 2, but .* has 2"):
        opened_and_loaded(changed(folder, {"g_idx": index}))


def test_a_bias_that_the_model_does_not_have(plain: Path, tmp_path: Path) -> None:
    folder, _ = quantize_directory(plain, tmp_path / "q", QUANTIZERS["gptq4"])
    opened_and_loaded(folder)  # GPTQ's writers add biases of zeros
    with pytest.raises(CheckpointError, match=r"up_proj\.bias is not zero"):
        opened_and_loaded(changed(folder, {"bias": torch.ones(40, dtype=torch.float16)}))


STATE = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [40, 64]}
NESTED = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.1}
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 63, 2**31, 2**70, 0.5, 1e300, float("nan"), float("inf"), "", "x", "9" * 5000),
    *([], [0], [64, 40], [40, 64, 1], [2**40, 2**40], ["a"], {}, {"a": {"b": [1]}}),
]


@pytest.mark.parametrize("key", [*STATE, *NESTED])
def test_the_text_of_bitsandbytes_changed(key: str, plain: Path, tmp_path: Path) -> None:
    nested = key in NESTED
    folder = quantized_mlp("nf4-nested" if nested else "nf4", plain, tmp_path / "q")
    whole: dict[str, Any] = STATE | (NESTED if nested else {})
    unread = {"quant_type", "dtype", "nested_dtype"}
    for value in VALUES:
        text = json.dumps(whole | {key: value}).encode()[:6000]
        state = torch.tensor(list(text), dtype=torch.uint8)
        changed(folder, {"weight.quant_state.bitsandbytes__nf4": state})
        same = key in unread and len(text) < 4096
        fits = key == "nested_blocksize" and value == 63  # one is enough for 40 scales
        if same or fits or (key == "nested_offset" and type(value) in (int, float) and abs(value) < 1e30):
            opened_and_loaded(folder)
            continue
        with pytest.raises(ModelError):
            opened_and_loaded(folder)


SETTINGS: dict[str, dict[str, Any]] = {name: quantizer.settings for name, quantizer in QUANTIZERS.items()}


def read(settings: dict[str, Any]) -> Any:
    return quantization(Fields({"quantization_config": settings}, "config.json"))


@pytest.mark.parametrize(
    "name", ["gptq4", "awq", "packed4", "int8", "float8-block", "fp8", "fbgemm", "nf4", "mxfp4"]
)
def test_a_key_that_nobody_knows_is_refused(name: str) -> None:
    read(SETTINGS[name])
    with pytest.raises(UnsupportedModelError, match=r"quantization_config\.rotated_weights"):
        read(SETTINGS[name] | {"rotated_weights": True})


def within(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Of the one group of compressed-tensors: its weights changed."""
    group = settings["config_groups"]["group_0"]
    return settings | {"config_groups": {"group_0": group | {"weights": group["weights"] | changes}}}


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (SETTINGS["gptq4"] | {"bits": 0}, "0 bits"),
        (SETTINGS["gptq4"] | {"bits": 5}, "5 bits"),
        (SETTINGS["gptq4"] | {"bits": "four"}, "bits is"),
        (SETTINGS["gptq4"] | {"group_size": 0}, "group_size is 0"),
        (SETTINGS["gptq4"] | {"group_size": -2}, "group_size is -2"),
        (SETTINGS["gptq4"] | {"group_size": 10**30}, "group_size is 1000"),
        (SETTINGS["gptq4"] | {"checkpoint_format": "marlin"}, "marlin"),
        (SETTINGS["gptq4"] | {"is_marlin_format": True}, "Marlin"),
        (SETTINGS["gptq4"] | {"rotation": "hadamard"}, "rotated activations"),
        (SETTINGS["gptq4"] | {"pack_dtype": "int64"}, "pack_dtype"),
        (SETTINGS["gptq4"] | {"sym": 1}, "sym is 1"),
        (SETTINGS["awq"] | {"version": "gemv"}, "gemv"),
        (SETTINGS["awq"] | {"bits": 3}, "3 bits"),
        (SETTINGS["packed4"] | {"format": "marlin-24"}, "marlin-24"),
        (SETTINGS["packed4"] | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
        (SETTINGS["packed4"] | {"transform_config": {"config_groups": {}}}, "rotated"),
        (within(SETTINGS["packed4"], num_bits=9), "9 bits"),
        (within(SETTINGS["packed4"], num_bits=0), "0 bits"),
        (within(SETTINGS["packed4"], group_size=0), "group_size is 0"),
        (within(SETTINGS["packed4"], strategy="tensor_of_dreams"), "tensor_of_dreams"),
        (within(SETTINGS["packed4"], codebook="x"), "codebook"),
        (within(SETTINGS["float8-block"], block_structure=[0, 32]), "two sizes"),
        (within(SETTINGS["float8-block"], num_bits=6), "6 bits"),
        (SETTINGS["fp8"] | {"weight_block_size": [128]}, "two sizes"),
        (SETTINGS["fp8"] | {"weight_block_size": [128, 10**30]}, "weight_block_size"),
        (SETTINGS["fp8"] | {"weight_block_size": [128, "a"]}, "weight_block_size"),
        (SETTINGS["fp8"] | {"fmt": "e3m4"}, "e3m4"),
        (SETTINGS["fp8"] | {"expert_dtype": "fp4"}, "experts"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "modelopt"}, "modelopt"),
        ({"quant_method": ["gptq"]}, "quant_method"),
        ({"bits": 4}, "has no quant_method"),
    ],
)
def test_settings_that_cannot_be_read(settings: dict[str, Any], what: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedModelError), match=what) as caught:
        read(settings)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("name", "settings", "what"),
    [
        ("gptq4", SETTINGS["gptq8"], "4 bits in groups of 32.*8 bits in groups of 32"),
        ("gptq4", SETTINGS["gptq4"] | {"group_size": 16}, "groups of 32.*groups of 16"),
        ("packed4", SETTINGS["packed8"], "misfit|says|configuration"),
        ("fp8", SETTINGS["fp8"] | {"weight_block_size": [128, 128]}, "is F8_E4M3"),
        ("gptq4", SETTINGS["awq"], "the quantized matrix"),
        ("awq", SETTINGS["gptq4"], "the quantized matrix"),
        ("packed4", SETTINGS["fp8"], "as compressed-tensors writes it, but its config.json has of fp8"),
        ("gptq4", None, "no quantization_config"),
        ("fp8", None, "type F8_E4M3"),
    ],
)
def test_settings_of_other_weights(
    name: str, settings: dict[str, Any] | None, what: str, plain: Path, tmp_path: Path
) -> None:
    folder, _ = quantize_directory(plain, tmp_path / "q", QUANTIZERS[name])
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    with pytest.raises((CheckpointError, UnsupportedModelError), match=what):
        open_checkpoint(str(folder))


def test_the_hint_for_settings_beside_the_configuration_can_be_followed(plain: Path, tmp_path: Path) -> None:
    """As older quantizers wrote them: quantize_config.json, without a method."""
    folder, _ = quantize_directory(plain, tmp_path / "q", QUANTIZERS["gptq4"])
    path = folder / "config.json"
    document = json.loads(path.read_text())
    settings = document.pop("quantization_config")
    method = settings.pop("quant_method")
    path.write_text(json.dumps(document))
    with pytest.raises(UnsupportedModelError, match="no quantization_config") as caught:
        open_checkpoint(str(folder))
    assert f'as quantization_config, with "quant_method": "{method}" or "awq"' in caught.value.hint
    path.write_text(json.dumps(document | {"quantization_config": settings}))
    with pytest.raises(UnsupportedModelError, match="has no quant_method") as caught:
        open_checkpoint(str(folder))
    assert f'"quant_method": "{method}"' in caught.value.hint
    path.write_text(json.dumps(document | {"quantization_config": {"quant_method": method} | settings}))
    open_checkpoint(str(folder)).close()


def test_patterns_of_what_is_left_out_are_never_run(plain: Path, tmp_path: Path) -> None:
    """They may take for ever, and the tensors say more."""
    evil = ["re:(a+)+$" + "a" * 5000, "re:(", "x" * 9000]
    for name, key in (
        ("packed4", "ignore"),
        ("fp8", "modules_to_not_convert"),
        ("nf4", "llm_int8_skip_modules"),
    ):
        folder, _ = quantize_directory(plain, tmp_path / name, QUANTIZERS[name])
        path = folder / "config.json"
        document = json.loads(path.read_text())
        document["quantization_config"][key] = evil
        path.write_text(json.dumps(document))
        opened_and_loaded(folder)
