"""Which device is taken where nobody says, and what memory it has."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import psutil
import pytest
import torch

from swarm_node.shards.loading import device_memory
from swarm_node.shards.mlx.tensors import device as mlx_device
from swarm_node.shards.models import devices
from swarm_node.shards.models.devices import DeviceChoice, choose_device, require_mlx
from swarm_node.shards.models.load_plan import LoadOptions, resolve_device
from swarm_node.swarm.errors import UsageError


def pretend(monkeypatch: pytest.MonkeyPatch, system: str, machine: str, *, mlx: bool, mps: bool) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(devices, "has_mlx", lambda: mlx)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("system", "machine", "mlx", "mps", "chosen"),
    [
        ("linux", "x86_64", True, False, "cpu"),
        ("darwin", "x86_64", False, True, "cpu"),
        ("darwin", "arm64", True, True, "mlx"),
        ("darwin", "arm64", False, True, "mps"),
        ("darwin", "arm64", False, False, "cpu"),
    ],
)
def test_what_suits_a_machine(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, mlx: bool, mps: bool, chosen: str
) -> None:
    pretend(monkeypatch, system, machine, mlx=mlx, mps=mps)
    name, note = choose_device()
    assert name == chosen
    assert ('".[mlx]"' in note) == (machine == "arm64" and not mlx)
    assert choose_device("cpu") == DeviceChoice("cpu")
    assert choose_device(only_cpu=True) == DeviceChoice("cpu")


def test_asking_imports_neither_mlx_nor_torch() -> None:
    code = (
        "import sys; from swarm_node.shards.models.devices import choose_device, has_mlx; choose_device(); "
        "print(has_mlx(), sorted({'mlx.core', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True []"


def test_a_broken_mlx_is_told_from_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    monkeypatch.setattr(devices, "has_mlx", lambda: True)
    with pytest.raises(UsageError, match="installed but cannot be used"):
        require_mlx()
    monkeypatch.setattr(devices, "has_mlx", lambda: False)
    with pytest.raises(UsageError, match="needs MLX"):
        require_mlx()


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7", "cuda:99999999999999999999", "mps"])
@pytest.mark.parametrize("ask", [choose_device, device_memory, resolve_device])
def test_a_device_that_is_not_here(
    monkeypatch: pytest.MonkeyPatch, name: str, ask: Callable[[str], object]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    if ask is device_memory and name == "mps":
        assert device_memory(name) is None
        return
    with pytest.raises(UsageError, match=f"no device '{name}'") as caught:
        ask(name)
    assert caught.value.hint == "Available here: cpu."


@pytest.mark.parametrize(
    ("name", "there"), [("cuda", True), ("cuda:0", True), ("cuda:1", True), ("cuda:2", False)]
)
def test_one_of_two_gpus(monkeypatch: pytest.MonkeyPatch, name: str, there: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if there:
        assert choose_device(name) == DeviceChoice(name)
        assert resolve_device(name) == name
    else:
        with pytest.raises(UsageError, match="no device 'cuda:2'"):
            choose_device(name)


def test_torch_has_no_mlx() -> None:
    LoadOptions(device="mlx")
    with pytest.raises(UsageError, match="does not compute on MLX"):
        resolve_device("mlx")
    with pytest.raises(UsageError, match="unknown device"):
        LoadOptions(device="auto")


def test_memory_on_a_cpu_is_the_hosts() -> None:
    assert device_memory("cpu") is None
    assert device_memory("mlx") is None


@pytest.mark.parametrize(
    ("free", "info", "left"),
    [
        (8 << 30, {"max_recommended_working_set_size": 24 << 30}, 8 << 30),
        (30 << 30, {"max_recommended_working_set_size": 24 << 30}, 22 << 30),
        (30 << 30, {"memory_size": 32 << 30}, 22 << 30),
        (30 << 30, {"max_recommended_working_set_size": 1 << 30}, 0),
    ],
)
def test_unified_memory(monkeypatch: pytest.MonkeyPatch, free: int, info: dict[str, Any], left: int) -> None:
    """What is free, or what Metal lets the GPU use beyond the 2 GiB that are in use: the smaller."""
    monkeypatch.setattr(mlx_device, "on_gpu", lambda: True)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free, total=0))
    monkeypatch.setattr(mx, "device_info", lambda: info)
    monkeypatch.setattr(mx, "get_active_memory", lambda: 2 << 30)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 0)
    assert device_memory("mlx") == left


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # its import raises ImportError
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_backend, load_client_model
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.types import Span
import swarm_node.client.hf as hf
checkpoint = open_checkpoint(sys.argv[1])
for options in map(eval, sys.argv[2:]):
    options = LoadOptions(**options)
    for load in (lambda: load_client_model(checkpoint, options),
                 lambda: load_backend(checkpoint, Span(0, 1), options),
                 lambda: hf.SwarmCache):
        try:
            load()
            print("loaded")
        except UsageError as error:
            print(error.message, error.hint, sep=" | ")
"""


@pytest.mark.parametrize(
    ("native", "wanted"),
    [
        (
            "",
            [
                ({}, "", ""),
                ({"kernels": "torch"}, "--kernels torch needs torch", "Use --kernels auto"),
                ({"device": "cuda"}, "device 'cuda' needs torch", "--device cpu"),
                ({"dtype": "bfloat16", "quantize": "none"}, "--dtype bfloat16", "--dtype auto"),
            ],
        ),
        (
            "0",
            [({}, "without our C kernels (turned off by SWARM_NODE_NATIVE=0) needs torch", '".[compiler]"')],
        ),
    ],
    ids=["with our kernels", "without"],
)
def test_without_torch_an_error_says_what_needs_it_and_what_to_do(
    gguf_llama: Callable[[], Path], native: str, wanted: list[tuple[dict[str, str], str, str]]
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            WITHOUT_TORCH,
            str(gguf_llama()),
            *(repr(options) for options, _, _ in wanted),
        ],
        env={**os.environ, **({"SWARM_NODE_NATIVE": native} if native else {})},
        capture_output=True,
        text=True,
        check=True,
    )
    said = iter(done.stdout.splitlines())
    for (options, needs, instead), client, node, hf in zip(wanted, said, said, said, strict=True):
        assert hf.startswith("SwarmCache needs torch")
        assert "SwarmModel" in hf
        for line in (client, node):
            as_wanted = needs in line and instead in line and "install torch" in line
            assert as_wanted if needs else line == "loaded", options
