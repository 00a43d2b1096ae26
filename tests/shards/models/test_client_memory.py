"""The arithmetic of a client's memory against what really is held, on random weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from scripts.studies.client_memory import DOCUMENT, MODELS, table
from swarm_node.shards import loading
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.qtypes import GGUF_QTYPES
from swarm_node.shards.formats.tensors import SIDE_PROJECTION
from swarm_node.shards.layers.memory import CHUNK_BYTES
from swarm_node.shards.loading import load_client_model
from swarm_node.shards.models.client_memory import HeadShape, check_room, client_memory
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.errors import UsageError
from tests import ROOT
from tests.shards.families.models import saved
from tests.shards.gguf_files import WRITTEN

HFLlama = Callable[..., Path]
GGUFLlama = Callable[..., Path]


def held(thing: object) -> int:
    """Bytes of all tensors and arrays that ``thing`` leads to, each storage once; those over the file do not
    count, nor what else lies in a chunk of memory."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [thing]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type | str | int):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            storage = one.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            continue
        if isinstance(one, np.ndarray):
            while isinstance(one.base, np.ndarray) and one.base.nbytes < CHUNK_BYTES:
                one = one.base
            if one.flags.owndata or (one.base is not None and one.flags.writeable):
                storages[one.ctypes.data] = one.nbytes
            continue
        waiting += _parts(one)
    return sum(storages.values())


def _parts(thing: Any) -> list[Any]:
    if isinstance(thing, list | tuple):
        return list(thing)
    if not type(thing).__module__.startswith("swarm_node."):
        return []
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    values = [getattr(thing, name) for name in slots if not name.startswith("__") and hasattr(thing, name)]
    return [*values, *getattr(thing, "__dict__", {}).values()]


def check(path: Path, shape: HeadShape, quantize: str, kernels: str) -> None:
    with open_checkpoint(str(path)) as checkpoint:
        model = load_client_model(checkpoint, LoadOptions(quantize=quantize, kernels=kernels))
        assert model.kernels == kernels
        memory = client_memory(shape, quantize=quantize, native=kernels == "native")
        model.logits(np.zeros((1, shape.hidden_size), np.float32))
        assert held(model) == pytest.approx(memory.weights, rel=0.005, abs=2000)
        assert model.weight_bytes <= memory.weights
        names = ["model.embed_tokens.weight"] + [] if shape.tied else ["lm_head.weight"]
        in_file = sum(checkpoint.tensor(name).nbytes for name in {*names, "model.embed_tokens.weight"})
        assert in_file == memory.in_file


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantize", ["auto", "none", "int8"])
@pytest.mark.parametrize(
    ("qtype", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)]
)
@pytest.mark.parametrize(("vocab", "hidden"), [(4000, 192), (1999, 640)])
def test_safetensors(
    hf_llama: HFLlama, vocab: int, hidden: int, qtype: str, dtype: torch.dtype, quantize: str, tied: bool
) -> None:
    path = hf_llama(
        vocab_size=vocab, hidden_size=hidden, dtype=dtype, tie_word_embeddings=tied, num_hidden_layers=1
    )
    check(path, HeadShape(vocab, hidden, tied, qtype), quantize, "native")


@pytest.mark.parametrize(("qtype", "dtype"), [("BF16", torch.bfloat16), ("F32", torch.float32)])
def test_safetensors_on_torch_kernels(hf_llama: HFLlama, qtype: str, dtype: torch.dtype) -> None:
    path = hf_llama(vocab_size=4000, hidden_size=192, dtype=dtype, num_hidden_layers=1)
    check(path, HeadShape(4000, 192, False, qtype), "int8", "torch")


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("qtype", sorted(WRITTEN.intersection(GGUF_QTYPES) - {"F32", "BF16"}))
def test_gguf(gguf_llama: GGUFLlama, qtype: str, kernels: str) -> None:
    quantize = "int4" if kernels == "torch" and qtype.startswith("Q4") else "auto"
    check(gguf_llama(qtype), HeadShape(50, 256, True, qtype), quantize, kernels)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells")
def test_the_process_grows_by_as_much(hf_llama: HFLlama) -> None:
    shape = HeadShape(16_000, 2048)
    path = hf_llama(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=32,
        num_hidden_layers=1,
        dtype=torch.bfloat16,
    )
    # What allocators keep of freed memory depends on threads and their timing: large blocks go back at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    program = [sys.executable, "-m", "tests.shards.models.grown_process", str(path)]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == pytest.approx(client_memory(shape).weights, rel=0.05)


@pytest.mark.parametrize(("quantize", "advice"), [("none", "--quantize auto"), ("auto", "smaller model")])
def test_too_little_memory(
    hf_llama: HFLlama, monkeypatch: pytest.MonkeyPatch, quantize: str, advice: str
) -> None:
    """The head takes 4 MB in bfloat16 and 2.3 MB in eight bits."""
    path = hf_llama(vocab_size=4096, hidden_size=512, num_hidden_layers=1, dtype=torch.bfloat16)
    free = {"none": 3_000_000, "auto": 2_000_000}[quantize]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=0))
    with (
        open_checkpoint(str(path)) as checkpoint,
        pytest.raises(UsageError, match=r"0\.00 GB are free") as error,
    ):
        load_client_model(checkpoint, LoadOptions(quantize=quantize))
    assert advice in error.value.hint


def test_what_a_client_multiplies_by_beside_the_head_needs_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = HeadShape(4096, 512)
    free = client_memory(shape).weights + 1000
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=0))
    check_room(shape, 1000, quantize="auto", native=True)
    with pytest.raises(UsageError, match="GB are free"):
        check_room(shape, 1001, quantize="auto", native=True)


def test_the_projections_of_streams_and_a_sideband_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = saved("gemma3n_text", tmp_path)
    asked: list[int] = []
    monkeypatch.setattr(loading, "check_room", lambda shape, beside, **_: asked.append(beside))
    with open_checkpoint(str(folder)) as checkpoint:
        load_client_model(checkpoint, LoadOptions(dtype="float32", kernels="torch"))
        names = [name for name in checkpoint.manifest if "altup" in name and "projection" in name]
        names = [name for name in names if ".layers." not in name]
        names.append(f"{SIDE_PROJECTION}.weight")
        assert asked == [sum(checkpoint.manifest[name].nbytes for name in names)]
        assert len(names) > 2


def test_what_cannot_be() -> None:
    with pytest.raises(UsageError, match="Q9"):
        HeadShape(10, 32, qtype="Q9")
    with pytest.raises(UsageError, match="int3"):
        client_memory(HeadShape(10, 32), quantize="int3")


def test_the_document_says_what_the_arithmetic_says() -> None:
    """docs/internals/client-memory.md holds the table that scripts/study client_memory prints."""
    assert table() in DOCUMENT.read_text()
    assert len(MODELS) >= 12


def test_a_large_model() -> None:
    """Llama-3-70B: 1.1 GB of head in place of 2.1 GB in bfloat16, which also is what a token reads."""
    shape = HeadShape(128256, 8192)
    auto, none = client_memory(shape), client_memory(shape, quantize="none")
    assert 1.1e9 < auto.weights < 1.13e9
    assert 2.1e9 < none.weights < 2.12e9
    assert auto.in_file == 2 * 128256 * 8192 * 2
