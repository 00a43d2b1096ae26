"""Checkpoints quantized by MLX, read without it: against ``mlx.core`` itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.qtypes import AFFINE_BITS, AFFINE_GROUPS, row_bytes
from swarm_node.shards.formats.quantized.mlx_affine import MlxAffine
from swarm_node.shards.formats.quantized.tensor import QuantizedTensor
from swarm_node.shards.formats.tensors import EMBEDDING
from swarm_node.shards.kernels.linear import ActivationPrecision, native_integers
from swarm_node.shards.layers.quantize import file_integers
from swarm_node.shards.loading import load_backend, load_client_model
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError
from swarm_node.swarm.types import Span
from tests.shards.mlx.mlx_checkpoints import quantize_directory

stored_names = MlxAffine().stored
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, hf_llama_in: Any) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    return hf_llama_in(
        folder, hidden_size=128, intermediate_size=256, num_hidden_layers=2, scale=lambda cols: cols**-0.5
    )


def values(folder: Path, name: str, bits: int, group: int) -> np.ndarray:
    tensors = mx.load(str(folder / "model.safetensors"))
    parts = (tensors[part] for part in stored_names(name))
    return np.array(mx.dequantize(*parts, group_size=group, bits=bits).astype(mx.float32))


@pytest.mark.parametrize("group", AFFINE_GROUPS)
@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_every_width_is_read_as_mlx_reads_it(tmp_path: Path, dense: Path, bits: int, group: int) -> None:
    folder = quantize_directory(dense, tmp_path / "q", bits=bits, group=group)
    with open_checkpoint(str(folder)) as checkpoint:
        raw = checkpoint.tensor(DOWN)
        assert isinstance(raw, QuantizedTensor)
        assert raw.integers is not None
        assert (raw.shape, raw.integers.bits, raw.integers.group) == ((128, 256), bits, group)
        assert raw.qtype == f"MLX{bits}_{group}_F32"
        assert raw.nbytes == 128 * row_bytes(raw.qtype, 256) == checkpoint.manifest[DOWN].nbytes
        wanted = values(folder, DOWN, bits, group)
        np.testing.assert_allclose(raw.dequantize(), wanted, atol=1e-6, rtol=1e-6)
        rows = [5, 0, 127, 5]
        np.testing.assert_allclose(raw.dequantize_rows(rows), wanted[rows], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_our_kernels_hold_every_width_as_it_is(tmp_path: Path, dense: Path, bits: int) -> None:
    folder = quantize_directory(dense, tmp_path / "q", bits=bits, group=64)
    held = 4 if bits <= 4 else 8
    with open_checkpoint(str(folder)) as checkpoint:
        span = load_backend(checkpoint, Span(0, 2), LoadOptions(kernels="native"))
        assert span.weights == f"int{held} (MLX{bits}_64_F32)"
        raw = checkpoint.tensor(DOWN)
        linear = native_integers([file_integers(raw, held)], held, None, ActivationPrecision.EXACT)
        assert linear.nbytes * 8 == (held + 64 / 64) * 128 * 256
        read, weight = linear(np.eye(256, dtype=np.float32)).T, raw.dequantize()
        np.testing.assert_allclose(read, weight, rtol=3e-6, atol=1e-6 * np.abs(weight).max())


def test_torch_holds_four_bits_as_they_are(tmp_path: Path, dense: Path) -> None:
    folder = quantize_directory(dense, tmp_path / "q", dtype=mx.bfloat16)
    with open_checkpoint(str(folder)) as checkpoint:
        assert checkpoint.tensor(DOWN).qtype == "MLX4_64"
        span = load_backend(checkpoint, Span(0, 2), LoadOptions(quantize="int4"))
        assert span.weights == "int4 (MLX4_64)"
        client = load_client_model(checkpoint, LoadOptions(dtype="float32", quantize="none"))
        wanted = torch.from_numpy(values(folder, EMBEDDING, 4, 64))
        torch.testing.assert_close(
            torch.from_numpy(client.embed([3, 9])), wanted[[3, 9]], atol=1e-2, rtol=1e-2
        )
        exact = checkpoint.tensor(EMBEDDING).dequantize_rows([3, 9])
        assert np.array_equal(client.embed([3, 9]), exact)


def test_some_matrices_may_differ_or_stay_dense(tmp_path: Path, dense: Path) -> None:
    stem = DOWN.removesuffix(".weight")
    others = {stem: {"bits": 8, "group_size": 32}, "lm_head": False}
    folder = quantize_directory(dense, tmp_path / "q", others=others)
    with open_checkpoint(str(folder)) as checkpoint:
        assert checkpoint.tensor(DOWN).qtype == "MLX8_32_F32"
        assert checkpoint.tensor("lm_head.weight").qtype == "F32"
        assert checkpoint.tensor(EMBEDDING).qtype == "MLX4_64_F32"
        wanted = values(folder, DOWN, 8, 32)
        np.testing.assert_allclose(checkpoint.tensor(DOWN).dequantize(), wanted, atol=1e-6, rtol=1e-6)


def test_the_digest_tells_quantizations_apart(tmp_path: Path, dense: Path) -> None:
    digests = set()
    for number, options in enumerate([{}, {}, {"bits": 8}, {"group": 32}, {"dtype": mx.bfloat16}]):
        folder = quantize_directory(dense, tmp_path / str(number), **options)
        with open_checkpoint(str(folder)) as checkpoint:
            digests.add(checkpoint.ref.digest)
    assert len(digests) == 4  # the first two are the same


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, dense: Path) -> Checkpoint:
    return open_checkpoint(str(quantize_directory(dense, tmp_path_factory.mktemp("q") / "q")))


def damaged(folder: Path, change: Any) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_parts_that_do_not_belong_together(tmp_path: Path, dense: Path) -> None:
    _, scales, biases = stored_names(DOWN)

    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors[scales] = tensors[scales][:64].contiguous()

    folder = damaged(quantize_directory(dense, tmp_path / "a"), lambda tensors: tensors.pop(biases))
    with pytest.raises(CheckpointError, match=f"without {biases}"):
        open_checkpoint(str(folder))
    folder = damaged(quantize_directory(dense, tmp_path / "b"), halve)
    with pytest.raises(CheckpointError, match=r"F32 \[64, 4\].*says \[128, 256\]"):
        open_checkpoint(str(folder))


def test_what_mlx_cannot_multiply_by_is_refused(tmp_path: Path, dense: Path) -> None:
    _, scales, biases = stored_names(DOWN)

    def one_group(tensors: dict[str, torch.Tensor]) -> None:
        for name in (scales, biases):
            tensors[name] = tensors[name][:, :1].contiguous()

    folder = damaged(quantize_directory(dense, tmp_path / "a"), one_group)
    with pytest.raises(UnsupportedModelError, match="4 bits in groups of 256"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("where", ["all", "one"])
def test_other_modes_are_refused(tmp_path: Path, dense: Path, where: str) -> None:
    folder = quantize_directory(dense, tmp_path / "a")
    document = json.loads((folder / "config.json").read_text())
    mode = {"mode": "mxfp4"}
    document["quantization"] |= mode if where == "all" else {"lm_head": {"group_size": 32, "bits": 4, **mode}}
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(UnsupportedModelError, match="mxfp4"):
        open_checkpoint(str(folder))
