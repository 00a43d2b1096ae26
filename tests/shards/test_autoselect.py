"""What is asked for and what ``auto`` means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from swarm_node.shards import autoselect
from swarm_node.shards.autoselect import CpuSpeeds, Kind, LoadOptions, cpu_speeds, resolve
from swarm_node.shards.raw_tensor import RawTensor
from swarm_node.swarm.errors import UsageError

FAST = CpuSpeeds(int4_pays=True, bf16_pays=True, wide_bf16=True)
PLAIN = CpuSpeeds(int4_pays=False, bf16_pays=False, wide_bf16=False)


def tensor(qtype: str, cols: int = 64) -> RawTensor:
    return RawTensor("w", (8, cols), qtype, np.zeros((8, 1), np.uint8))


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoselect, "cpu_speeds", lambda: FAST)


@pytest.mark.parametrize(
    ("qtype", "kind", "dtype"),
    [
        ("Q4_0", Kind.INT4, None),
        ("Q4_1", Kind.INT4, None),
        ("Q4_K", Kind.INT4, None),
        ("Q8_0", Kind.DENSE, torch.bfloat16),
        ("Q6_K", Kind.DENSE, torch.bfloat16),
        ("BF16", Kind.DENSE, torch.bfloat16),
        ("F16", Kind.DENSE, torch.float32),
        ("F32", Kind.DENSE, torch.float32),
    ],
)
def test_auto_keeps_the_precision_of_the_file(
    speeds: None, qtype: str, kind: Kind, dtype: torch.dtype | None
) -> None:
    plan = resolve(LoadOptions(), qtype)
    assert plan.dtype == torch.float32
    assert plan.kind(tensor(qtype)) is kind
    if dtype is not None:
        assert plan.dense_dtype(qtype) == dtype


def test_a_cpu_without_fast_kernels_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoselect, "cpu_speeds", lambda: PLAIN)
    plan = resolve(LoadOptions(), "Q4_1")
    assert plan.wide == torch.float32
    assert plan.kind(tensor("Q4_1")) is Kind.DENSE
    assert plan.dense_dtype("Q4_1") == plan.dense_dtype("BF16") == torch.float32


def test_asked_for_forms_are_forced(speeds: None) -> None:
    assert resolve(LoadOptions(quantize="none"), "Q4_1").kind(tensor("Q4_1")) is Kind.DENSE
    assert resolve(LoadOptions(quantize="none"), "Q4_1").dense_dtype("Q4_1") == torch.float32
    assert resolve(LoadOptions(quantize="int4"), "F32").kind(tensor("F32")) is Kind.INT4
    assert resolve(LoadOptions(quantize="int4"), "F32").kind(tensor("F32", cols=40)) is Kind.INT8
    assert resolve(LoadOptions(quantize="int8"), "Q4_1").kind(tensor("Q4_1")) is Kind.INT8
    assert resolve(LoadOptions(dtype="bfloat16"), "F32").dense_dtype("F32") == torch.bfloat16
    assert resolve(LoadOptions(dtype="float32"), "BF16").wide == torch.float32


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"device": "tpu"}, "tpu"),
        ({"device": "cuda:x"}, "cuda:x"),
        ({"dtype": "int3"}, "int3"),
        ({"quantize": "q2"}, "q2"),
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


def test_measuring_leaves_the_thread_count() -> None:
    before = torch.get_num_threads()
    cpu_speeds.cache_clear()
    cpu_speeds()
    assert torch.get_num_threads() == before
