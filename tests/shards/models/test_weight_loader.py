"""From a file's tensors to the linears that the plan wants."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.qtypes import float8_qtype
from swarm_node.shards.formats.quantized.float8 import Float8
from swarm_node.shards.formats.quantized.scales import Scales
from swarm_node.shards.formats.quantized.tensor import quantized
from swarm_node.shards.formats.raw_tensor import RawTensor
from swarm_node.shards.kernels import library
from swarm_node.shards.kernels.linear import NativeLinear
from swarm_node.shards.kernels.table import kernel_table
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions, WeightKind, resolve
from swarm_node.shards.models.weight_loader import WeightLoader
from swarm_node.shards.torch.tensors.linear import DenseLinear, Int4Linear, Int8Linear
from swarm_node.shards.torch.weights import TorchLoader
from swarm_node.swarm.errors import CheckpointError, UsageError
from swarm_node.swarm.types import Span

GGUFLlama = Callable[..., Path]
HFLlama = Callable[..., Path]
GATE_UP = ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]
needs_native = pytest.mark.skipif(not kernel_table().native, reason="no native kernels on this machine")


def load(checkpoint: Checkpoint, options: LoadOptions, kind: WeightKind | None = None) -> tuple[Any, str]:
    plan = resolve(options, checkpoint.config.native_dtype)
    loader = (WeightLoader if plan.precision is not None else TorchLoader)(checkpoint, plan)
    linear = loader.linear(GATE_UP, [512, 512], 256, kind)
    assert loader.nbytes == linear.nbytes
    return linear, loader.summary()


def values(checkpoint: Checkpoint) -> np.ndarray:
    return np.concatenate([checkpoint.tensor(f"{name}.weight").dequantize() for name in GATE_UP])


CASES = [
    ("Q4_0", "auto", "int4 (Q4_0)", 4.5, 1e-4),
    ("Q4_1", "auto", "int4 (Q4_1)", 5.0, 1e-4),
    ("Q8_0", "auto", "int8 (Q8_0)", 8.5, 1e-4),
    ("Q6_K", "auto", "int6 (Q6_K)", 6.5625, 1e-4),
    ("Q5_K", "auto", "int5 (Q5_K)", 5.625, 1e-4),
    ("Q5_0", "auto", "int5 (Q5_0)", 5.5, 1e-4),
    ("Q5_1", "auto", "int5 (Q5_1)", 6.0, 1e-4),
    ("IQ4_XS", "auto", "int4 (IQ4_XS)", 4.3125, 1e-4),
    ("IQ4_NL", "int4", "int4 (IQ4_NL)", 4.5, 1e-4),
    ("Q3_K", "auto", "int3 (Q3_K)", 3.5625, 1e-4),
    ("Q2_K", "auto", "int2 (Q2_K)", 2.625, 1e-4),
    ("Q5_0", "int8", "int8", 8.5, 1e-4),
    ("BF16", "auto", "bfloat16", 16.0, 1e-4),
    ("F16", "auto", "float16", 16.0, 1e-4),
    ("F32", "auto", "float32", 32.0, 1e-4),
    ("IQ3_S", "auto", "int8 (IQ3_S)", 9.0, 1e-4),
    ("IQ2_XS", "auto", "int8 (IQ2_XS)", 10.0, 1e-4),
    ("TQ1_0", "auto", "int8 (TQ1_0)", 8.5, 1e-4),
    ("IQ1_M", "int4", "int4", 5.0, 0.2),
    ("IQ1_M", "none", "float32", 32.0, 1e-4),
    ("F32", "int8", "int8", 8.5, 0.01),
    ("F32", "int4", "int4", 5.0, 0.12),
    ("Q4_1", "int8", "int8", 8.5, 0.01),
    ("Q8_0", "int4", "int4", 5.0, 0.12),
    ("Q4_1", "none", "float32", 32.0, 1e-4),
]


@needs_native
@pytest.mark.parametrize(("qtype", "quantize", "form", "bits", "tolerance"), CASES)
def test_native_forms(
    gguf_llama: GGUFLlama, qtype: str, quantize: str, form: str, bits: float, tolerance: float
) -> None:
    with open_checkpoint(str(gguf_llama(qtype))) as checkpoint:
        linear, summary = load(checkpoint, LoadOptions(quantize=quantize, kernels="native"))
        weight = values(checkpoint)
    assert isinstance(linear, NativeLinear)
    assert summary == form
    assert linear.nbytes * 8 == bits * weight.size  # and nothing is held twice
    x = np.random.default_rng(0).standard_normal((5, 256), np.float32)
    want = x @ weight.T
    assert np.linalg.norm(linear(x) - want) / np.linalg.norm(want) < tolerance


@needs_native
@pytest.mark.parametrize(
    ("gate", "up", "quantize", "forms", "bits"),
    [
        ("Q4_K", "Q6_K", "auto", "int4 (Q4_K) + int6 (Q6_K)", (4.625, 6.5625)),
        ("Q4_K", "Q5_K", "auto", "int4 (Q4_K) + int5 (Q5_K)", (4.625, 5.625)),
        ("MXFP4", "Q4_0", "auto", "int4 (MXFP4) + int4 (Q4_0)", (4.5, 4.5)),
        ("F16", "Q2_K", "auto", "float16 + int2 (Q2_K)", (16, 2.625)),
        ("Q4_K", "Q6_K", "int4", "int4 (Q4_K) + int4", (4.625, 5.0)),
        ("Q3_K", "IQ4_XS", "none", "float32", (32, 32)),
    ],
)
def test_a_stack_of_two_types_keeps_both(
    gguf_llama: GGUFLlama, gate: str, up: str, quantize: str, forms: str, bits: tuple[float, float]
) -> None:
    path = gguf_llama(gate, others={"ffn_up": up})
    with open_checkpoint(str(path)) as checkpoint:
        linear, summary = load(checkpoint, LoadOptions(quantize=quantize, kernels="native"))
        weight = values(checkpoint)
    assert sorted(summary.split(" + ")) == sorted(forms.split(" + "))
    assert linear.nbytes * 8 == sum(bits) * 512 * 256
    x = np.random.default_rng(0).standard_normal((5, 256), np.float32)
    want = x @ weight.T
    tolerance = 0.12 if quantize == "int4" else 1e-4
    assert np.linalg.norm(linear(x) - want) / np.linalg.norm(want) < tolerance


@pytest.mark.parametrize("up", ["Q6_K", "Q5_K", "IQ4_XS", "Q2_K"])
def test_torch_holds_a_stack_of_two_types_dense(gguf_llama: GGUFLlama, up: str) -> None:
    """Where our kernels could have been taken and were not, too."""
    with open_checkpoint(str(gguf_llama("Q4_K", others={"ffn_up": up}))) as checkpoint:
        loader = TorchLoader(checkpoint, resolve(LoadOptions(dtype="float32"), "Q4_K"))
        linear: Any = loader.linear(GATE_UP, [512, 512], 256)
        x = np.random.default_rng(0).standard_normal((5, 256), np.float32)
        want = x @ values(checkpoint).T
    assert isinstance(linear, DenseLinear)
    np.testing.assert_allclose(linear(torch.from_numpy(x)).numpy(), want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("qtype", "quantize", "type_", "form"),
    [
        ("Q4_1", "auto", (Int4Linear, DenseLinear), None),
        ("Q8_0", "auto", DenseLinear, None),
        ("F32", "int8", Int8Linear, "int8"),
        ("Q8_0", "int4", Int4Linear, "int4"),
        ("F16", "auto", DenseLinear, "float32"),
    ],
)
def test_torch_forms(
    gguf_llama: GGUFLlama, qtype: str, quantize: str, type_: type | tuple[type, ...], form: str | None
) -> None:
    with open_checkpoint(str(gguf_llama(qtype))) as checkpoint:
        linear, summary = load(checkpoint, LoadOptions(quantize=quantize, kernels="torch"))
    assert isinstance(linear, type_)
    assert form is None or summary == form


def test_widths_without_groups_are_dense(hf_llama: HFLlama) -> None:
    path = hf_llama(hidden_size=40, num_attention_heads=4, num_key_value_heads=2)
    with open_checkpoint(str(path)) as checkpoint:
        x = np.random.default_rng(0).standard_normal((3, 40), np.float32)
        for kernels in ("auto", "torch"):
            plan = resolve(LoadOptions(quantize="int8", kernels=kernels), "F32")
            native = plan.precision is not None
            loader = (WeightLoader if native else TorchLoader)(checkpoint, plan)
            linear: Any = loader.linear(GATE_UP, [96, 96], 40, WeightKind.INT8)
            assert loader.summary() == "float32"
            got = linear(x) if native else linear(torch.from_numpy(x)).numpy()
            np.testing.assert_allclose(got, x @ values(checkpoint).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "environment",
    [{"SWARM_NODE_NATIVE": "0"}, {"SWARM_NODE_CC": "no-such-compiler"}],
    ids=["turned off", "no compiler"],
)
def test_without_native_kernels_torch_does_all(
    gguf_llama: GGUFLlama, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    library.library.cache_clear()
    try:
        with open_checkpoint(str(gguf_llama("Q4_1"))) as checkpoint:
            assert resolve(LoadOptions(), "Q4_1").precision is None
            assert load_backend(checkpoint, Span(0, 1), LoadOptions()).kernels == "torch"
    finally:
        library.library.cache_clear()


NATIVE_PROBE = """
import sys
import numpy as np
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.layers.kv_pool import BatchSlice
from swarm_node.shards.loading import load_backend, load_client_model
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.types import Span
with open_checkpoint(sys.argv[1], client=True) as checkpoint:
    span = load_backend(checkpoint, Span(0, 1), LoadOptions())
    ends = load_client_model(checkpoint, LoadOptions())
    table = np.zeros((1, 1), np.int32)
    rows = span.forward(ends.embed([1, 2]), [BatchSlice(table, 0, 0, 0, 2)], span.new_pool(1, "float16"))
    print(span.kernels, ends.kernels, ends.logits(rows).shape, "torch" in sys.modules)
"""


@needs_native
def test_the_native_path_imports_no_torch(gguf_llama: GGUFLlama) -> None:
    """From the file to logits."""
    command = [sys.executable, "-c", NATIVE_PROBE, str(gguf_llama("Q4_1"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "native close native (2, 50) False"


def test_native_kernels_elsewhere_are_refused() -> None:
    with pytest.raises(UsageError, match="native kernels"):
        resolve(LoadOptions(dtype="float16", kernels="native"), "F32")


def float8_gate_and_up(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, byte: int = 0) -> None:
    """Gate and up of the first block are floats of eight bits, with scales for 128 columns, and for all.
    One is ``byte``."""
    made = {}
    for name, group in zip(GATE_UP, (128, 0), strict=True):
        random = np.random.default_rng(group)
        q = random.integers(0, 127, (512, 256), np.uint8)
        q[300, 5] = byte
        scale = random.uniform(1e-3, 1e-2, (512, 2 if group else 1)).astype(np.float32)
        numbers = Float8(q, Scales(scale, 1, 512), group)
        made[f"{name}.weight"] = quantized(f"{name}.weight", q.shape, float8_qtype(group), numbers, None)
    plain = Checkpoint.tensor
    monkeypatch.setattr(Checkpoint, "tensor", lambda self, name: made.get(name) or plain(self, name))


@needs_native
def test_floats_of_eight_bits_stay_so(gguf_llama: GGUFLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_checkpoint(str(gguf_llama("F32"))) as checkpoint:
        float8_gate_and_up(checkpoint, monkeypatch)
        x = np.random.default_rng(0).standard_normal((5, 256)).astype(np.float32)
        want = x.astype(np.float64) @ values(checkpoint).T.astype(np.float64)
        linear, summary = load(checkpoint, LoadOptions(kernels="native"))
        assert set(summary.split(" + ")) == {"float8 (F8_E4M3_128)", "float8 (F8_E4M3_ROW)"}
        assert linear.nbytes == 1024 * 256 + 512 * (2 + 1) * 4
        assert np.linalg.norm(linear(x) - want) / np.linalg.norm(want) < 1e-6
        for options, form, most in (
            (LoadOptions(kernels="torch", dtype="float32"), "float32", 1e-6),
            (LoadOptions(kernels="torch", quantize="int8"), "int8", 0.02),
            (LoadOptions(kernels="native", quantize="int4"), "int4", 0.2),
        ):
            linear, summary = load(checkpoint, options)
            assert summary == form
            got = (
                linear(x) if isinstance(linear, NativeLinear) else linear(torch.from_numpy(x)).float().numpy()
            )
            assert np.linalg.norm(got - want) / np.linalg.norm(want) < most


@needs_native
@pytest.mark.parametrize("byte", [0x7F, 0xFF])
@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_floats_of_eight_bits_that_are_no_numbers_are_refused_by_name(
    gguf_llama: GGUFLlama, monkeypatch: pytest.MonkeyPatch, byte: int, kernels: str
) -> None:
    with open_checkpoint(str(gguf_llama("F32"))) as checkpoint:
        float8_gate_and_up(checkpoint, monkeypatch, byte)
        with pytest.raises(
            CheckpointError, match=r"tensor model\.layers\.0\.mlp\.gate_proj\.weight has weights"
        ):
            load(checkpoint, LoadOptions(kernels=kernels))


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("model.layers.1.input_layernorm.weight", 5),
        ("model.layers.1.mlp.down_proj.weight", 4 * 9 + 1),  # a scale in a group of 18 bytes
    ],
)
def test_a_number_that_is_not_finite_is_refused_by_its_tensor(
    kernels: str, number: float, name: str, at: int, gguf_llama: GGUFLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_checkpoint(str(gguf_llama("Q4_0"))) as checkpoint:
        whole = checkpoint.tensor

        def spoilt(wanted: str) -> RawTensor:
            raw = whole(wanted)
            if wanted != name:
                return raw
            stored = np.array(raw.stored)
            if len(raw.shape) == 1:
                stored.view(np.float32)[0, at] = number
            else:
                stored[3].view(np.float16)[at - 1] = number
            return replace(raw, stored=stored)

        options = LoadOptions(kernels=kernels)
        load_backend(checkpoint, Span(1, 2), options)
        monkeypatch.setattr(checkpoint, "tensor", spoilt)
        with pytest.raises(
            CheckpointError, match=f"tensor {re.escape(name)} has weights that are not finite"
        ):
            load_backend(checkpoint, Span(1, 2), options)
        load_backend(checkpoint, Span(0, 1), options)
