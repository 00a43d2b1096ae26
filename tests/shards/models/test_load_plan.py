"""What is asked for and what ``auto`` means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from swarm_node.shards.formats.raw_tensor import RawTensor
from swarm_node.shards.kernels.bench import NATIVE_WAYS, TORCH_WAYS
from swarm_node.shards.kernels.linear import ActivationPrecision
from swarm_node.shards.kernels.table import KernelTable
from swarm_node.shards.models import load_plan
from swarm_node.shards.models.load_plan import LoadOptions, WeightKind, resolve
from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.runtime.c_build import NativeUnavailableError

SLOW = (1.0, 8.0, 64.0)
FAST = KernelTable({**dict.fromkeys(TORCH_WAYS, (0.1, 0.8, 6.4)), "torch float32": SLOW})
"""torch's packed kernels pay, ours do not exist."""
PLAIN = KernelTable({**dict.fromkeys(TORCH_WAYS, SLOW), "torch float32": (0.1, 0.8, 6.4)})
"""Nothing pays."""
NATIVE = KernelTable({**PLAIN.seconds, **dict.fromkeys(NATIVE_WAYS, (0.05, 0.4, 3.2))})
"""Our kernels pay for everything."""


def tensor(qtype: str, cols: int = 64) -> RawTensor:
    return RawTensor("w", (8, cols), qtype, np.zeros((8, 1), np.uint8))


def use(monkeypatch: pytest.MonkeyPatch, table: KernelTable) -> None:
    """As on a machine that measured ``table``."""

    def library() -> object:
        if not table.native:
            raise NativeUnavailableError("no C compiler found")
        return object()

    monkeypatch.setattr(load_plan, "kernel_table", lambda: table)
    monkeypatch.setattr(load_plan, "library", library)


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FAST)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, NATIVE)


@pytest.mark.parametrize(
    ("qtype", "kind", "dtype"),
    [
        ("Q4_0", WeightKind.INT4, None),
        ("Q4_1", WeightKind.INT4, None),
        ("Q4_K", WeightKind.INT4, None),
        ("Q8_0", WeightKind.DENSE, "bfloat16"),
        ("Q6_K", WeightKind.DENSE, "bfloat16"),
        ("BF16", WeightKind.DENSE, "bfloat16"),
        ("F16", WeightKind.DENSE, "float32"),
        ("F32", WeightKind.DENSE, "float32"),
    ],
)
def test_auto_keeps_the_precision_of_the_file(
    speeds: None, qtype: str, kind: WeightKind, dtype: str | None
) -> None:
    plan = resolve(LoadOptions(), qtype)
    assert plan.dtype == "float32"
    assert plan.kind(tensor(qtype)) is kind
    if dtype is not None:
        assert plan.dense_dtype(qtype) == dtype


def test_a_cpu_without_fast_kernels_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, PLAIN)
    plan = resolve(LoadOptions(), "Q4_1")
    assert plan.wide == "float32"
    assert plan.kind(tensor("Q4_1")) is WeightKind.DENSE
    assert plan.dense_dtype("Q4_1") == plan.dense_dtype("BF16") == "float32"


@pytest.mark.parametrize(
    ("qtype", "kind", "dtype"),
    [
        ("MXFP4", WeightKind.INT4, None),
        ("Q4_K", WeightKind.INT4, None),
        ("Q8_0", WeightKind.INT8, None),
        ("Q6_K", WeightKind.INT6, None),
        ("Q5_K", WeightKind.INT5, None),
        ("Q5_0", WeightKind.INT5, None),
        ("IQ4_XS", WeightKind.INT4, None),
        ("Q3_K", WeightKind.INT3, None),
        ("Q2_K", WeightKind.INT2, None),
        ("BF16", WeightKind.DENSE, "bfloat16"),
        ("F16", WeightKind.DENSE, "float16"),
        ("F32", WeightKind.DENSE, "float32"),
    ],
)
def test_native_kernels_keep_eight_bit_and_float16_files_too(
    native: None, qtype: str, kind: WeightKind, dtype: str | None
) -> None:
    plan = resolve(LoadOptions(), qtype)
    assert plan.kind(tensor(qtype)) is kind
    assert dtype is None or plan.dense_dtype(qtype) == dtype
    assert plan.native(dtype or kind)


def test_each_part_of_a_stack_has_its_own_form(native: None) -> None:
    raws = [tensor(qtype) for qtype in ("Q4_K", "Q6_K", "BF16")]
    assert resolve(LoadOptions(), "Q4_K").forms(raws) == ["int4", "int6", "bfloat16"]
    assert resolve(LoadOptions(), "Q4_K").form(raws) == "bfloat16"
    assert resolve(LoadOptions(quantize="int8"), "Q4_K").forms(raws) == ["int8"] * 3
    assert resolve(LoadOptions(quantize="int4"), "Q4_K").forms(raws) == ["int4"] * 3


def test_activations_of_native_kernels(native: None) -> None:
    assert resolve(LoadOptions(), "Q4_1").precision is ActivationPrecision.CLOSE
    assert resolve(LoadOptions(kernels="native"), "Q4_1").precision is ActivationPrecision.CLOSE
    assert resolve(LoadOptions(dtype="float32"), "Q4_1").precision is ActivationPrecision.EXACT
    assert resolve(LoadOptions(kernels="fast"), "Q4_1").precision is ActivationPrecision.FAST
    assert resolve(LoadOptions(kernels="torch"), "Q4_1").precision is None
    assert resolve(LoadOptions(dtype="bfloat16"), "Q4_1").precision is None


def test_torch_is_taken_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, KernelTable({**FAST.seconds, **dict.fromkeys(NATIVE_WAYS, SLOW)}))
    assert not resolve(LoadOptions(), "Q4_1").native(WeightKind.INT4)
    assert resolve(LoadOptions(), "Q8_0").kind(tensor("Q8_0")) is WeightKind.DENSE
    assert resolve(LoadOptions(kernels="native"), "Q4_1").native(WeightKind.INT4)


def test_native_kernels_that_cannot_run(speeds: None) -> None:
    assert resolve(LoadOptions(), "Q4_1").precision is None
    assert not resolve(LoadOptions(), "Q4_1").native(WeightKind.INT4)
    for kernels in ("native", "fast"):
        with pytest.raises(UsageError, match="no C compiler found"):
            resolve(LoadOptions(kernels=kernels), "Q4_1")
        with pytest.raises(UsageError, match="float32 on the CPU"):
            resolve(LoadOptions(kernels=kernels, dtype="bfloat16"), "Q4_1")


def test_asked_for_forms_are_forced(speeds: None) -> None:
    assert resolve(LoadOptions(quantize="none"), "Q4_1").kind(tensor("Q4_1")) is WeightKind.DENSE
    assert resolve(LoadOptions(quantize="none"), "Q4_1").dense_dtype("Q4_1") == "float32"
    assert resolve(LoadOptions(quantize="int4"), "F32").kind(tensor("F32")) is WeightKind.INT4
    assert resolve(LoadOptions(quantize="int4"), "F32").kind(tensor("F32", cols=40)) is WeightKind.DENSE
    assert resolve(LoadOptions(quantize="int8"), "Q4_1").kind(tensor("Q4_1")) is WeightKind.INT8
    assert resolve(LoadOptions(quantize="int8"), "F32").kind(tensor("F32", cols=72)) is WeightKind.DENSE
    assert resolve(LoadOptions(dtype="bfloat16"), "F32").dense_dtype("F32") == "bfloat16"
    assert resolve(LoadOptions(dtype="float32"), "BF16").wide == "float32"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"device": "tpu"}, "tpu"),
        ({"device": "cuda:x"}, "cuda:x"),
        ({"dtype": "int3"}, "int3"),
        ({"quantize": "q2"}, "q2"),
        ({"kernels": "quick"}, "quick"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, str], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        LoadOptions(**options)
    assert "Choose from" in caught.value.hint


def test_a_missing_device_is_named_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no device 'cuda:3'") as caught:
        resolve(LoadOptions(device="cuda:3"), "BF16")
    assert "cpu" in caught.value.hint


@pytest.mark.parametrize("wanted", ["int4", "int8"])
def test_a_router_is_never_rounded(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    use(monkeypatch, NATIVE)
    plan = resolve(LoadOptions(quantize=wanted), "F32")
    router = replace(tensor("F32"), name="model.layers.3.mlp.router.weight")
    assert plan.kind(tensor("F32")) is WeightKind(wanted)
    assert plan.kind(router) is WeightKind.DENSE
    assert plan.dense_dtype(router.qtype) == "float32"
