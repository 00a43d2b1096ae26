"""HuggingFace directories: whole and sharded, and files that are not what they say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.files import tensor_files
from swarm_node.shards.formats.files.tensor_files import StoredTensor, TensorFiles
from swarm_node.shards.formats.hf.safetensors_header import header_length, parse_header
from swarm_node.shards.formats.raw_tensor import RawTensor
from swarm_node.swarm.errors import CheckpointError, ModelError, UnsupportedModelError, UsageError
from swarm_node.swarm.types import Span

HFLlama = Callable[..., Path]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_equal_the_safetensors_package(hf_llama: HFLlama, dtype: torch.dtype) -> None:
    directory = hf_llama(dtype=dtype)
    expected = load_file(directory / "model.safetensors")
    with open_checkpoint(str(directory)) as model:
        for name, value in expected.items():
            raw = model.tensor(name)
            assert raw.shape == tuple(value.shape)
            for kind in {"float32", "bfloat16", str(dtype).removeprefix("torch.")}:
                wanted = value.float().to(getattr(torch, kind))
                assert torch.equal(torch.from_numpy(raw.dequantize(kind)).view(wanted.dtype), wanted)
        embedding = expected["model.embed_tokens.weight"]
        rows = model.tensor("model.embed_tokens.weight").dequantize_rows([7, 7, 0])
        assert torch.equal(torch.from_numpy(rows), embedding[[7, 7, 0]].float())


def test_shards_and_one_file_hold_the_same_tensors_and_are_two_models(hf_llama: HFLlama) -> None:
    with (
        open_checkpoint(str(hf_llama("one"))) as one,
        open_checkpoint(str(hf_llama("many", shards=3))) as many,
    ):
        assert one.ref.digest != many.ref.digest  # the hub tells hashes of files, not of tensors
        assert (one.ref.name, many.ref.name) == ("one", "many")
        for block in range(4):
            name = f"model.layers.{block}.mlp.up_proj.weight"
            assert np.array_equal(one.tensor(name).dequantize(), many.tensor(name).dequantize())


def test_digest_tells_models_apart(hf_llama: HFLlama) -> None:
    digests = set()
    variants: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"dtype": torch.bfloat16},
        {"rope_theta": 500.0},
        {"rms_norm_eps": 1e-6},
    ]
    for number, options in enumerate(variants):
        with open_checkpoint(str(hf_llama(f"m{number}", **options))) as model:
            digests.add(model.ref.digest)
    assert len(digests) == 5


@pytest.mark.parametrize(
    "part", ["model.layers.2.self_attn.q_proj.weight", "model.layers.3.mlp.down_proj.weight"]
)
def test_digest_notices_a_changed_matrix(hf_llama: HFLlama, part: str) -> None:
    directory = hf_llama()
    with open_checkpoint(str(directory)) as model:
        before = model.ref.digest
    tensors = load_file(directory / "model.safetensors")
    tensors[part] += 0.001
    save_file(tensors, directory / "model.safetensors")
    with open_checkpoint(str(directory)) as model:
        assert model.ref.digest != before


def test_tied_head(hf_llama: HFLlama) -> None:
    with open_checkpoint(str(hf_llama(tie_word_embeddings=True))) as model:
        assert model.config.tie_word_embeddings
        assert not model.has("lm_head.weight")
        with pytest.raises(CheckpointError, match="no tensor lm_head"):
            model.tensor("lm_head.weight")


def test_span_outside_the_model(hf_llama: HFLlama) -> None:
    with pytest.raises(UsageError, match="blocks 4-8 are outside") as caught:
        open_checkpoint(str(hf_llama()), blocks=Span(4, 9))
    assert "0-3" in caught.value.hint


def test_name_of_a_snapshot_in_the_hub_cache(hf_llama: HFLlama, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    hf_llama("plain").rename(snapshot)
    with open_checkpoint(str(snapshot)) as model:
        assert model.ref.name == "some/model"


def header(entries: dict[str, Any]) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else shape,
        "data_offsets": [begin, end],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"abc", "only 3 bytes"),
        (b"\xff" * 20, "claims a header"),
        ((200).to_bytes(8, "little") + b"{}", "claims a header of 200"),
        ((2).to_bytes(8, "little") + b"{]", "not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
        (header({"a": entry(0, 8)}) + bytes(4), "truncated"),
        (header({"a": entry(0, 8)}) + bytes(12), "4 bytes after its last"),
        (header({"a": entry(0, 8), "b": entry(4, 12)}) + bytes(12), "overlaps"),
        (header({"a": entry(0, 8), "b": entry(0, 8)}) + bytes(8), "overlaps"),
        (header({"a": entry(0, 4), "b": entry(8, 12)}) + bytes(12), "nothing describes the 4 bytes"),
        (header({"a": entry(0, 8, [3])}) + bytes(8), "8 bytes, its shape and type need 12"),
        (header({"a": entry(8, 0, [0])}) + bytes(8), "ends before it begins"),
        (header({"a": entry(-4, 4)}) + bytes(8), "no proper"),
        (header({"a": {"dtype": "F32"}}), "no proper"),
        (header({"a": 3}), "not described"),
        (header({"a": entry(0, 2**60)}), "truncated"),
        (header({"a": entry(0, 2**70)}), "no proper"),
        (header({"a": entry(0, 0, [1] * 9)}), "no proper"),
        (header({"a": entry(0, 0, [2**64, 0])}), "no proper"),
        (header({"a" * 1025: entry(0, 0)}), "a tensor's name"),
        (header({str(n): 0 for n in range(2**16 + 2)}), "65538 tensors, at most 65536"),
        (header({"__metadata__": [[]] * 2**20}), "not JSON .it has more than 1048576 values"),
        (header({"__metadata__": "x" * 2**24}), "claims a header"),
        (header({"a": json.loads("[" * 40 + "]" * 40)}), "nested too deeply"),
        (header({"a": entry(0, 4)}) + bytes(4) * 2, "4 bytes after its last"),
    ],
)
def test_damaged_files(hf_llama: HFLlama, content: bytes, message: str) -> None:
    directory = hf_llama()
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(str(directory))
    assert caught.value.hint


@pytest.mark.parametrize("dtype", ["Q4_1", "MLX4_64", "F7", "I4"])
def test_a_type_whose_size_nobody_knows_is_refused(hf_llama: HFLlama, dtype: str) -> None:
    """GGUF's, MLX's, or of a later version: bytes of any number would pass for a tensor of any shape."""
    directory = hf_llama()
    (directory / "model.safetensors").write_bytes(header({"a": entry(0, 20, [32], dtype)}) + bytes(20))
    with pytest.raises(UnsupportedModelError, match=f"tensor a of .* has the unknown type {dtype}"):
        open_checkpoint(str(directory))


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_raise(data: bytes) -> None:
    try:
        length = header_length(data, len(data), "file")
        parse_header(data[8 : 8 + length], len(data), "file")
    except ModelError:
        pass


def test_missing_tensor(hf_llama: HFLlama) -> None:
    directory = hf_llama()
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no tensor model\.layers\.2\.mlp\.up_proj"):
        open_checkpoint(str(directory))


def test_wrong_shape(hf_llama: HFLlama) -> None:
    directory = hf_llama()
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(65)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"shape \[65\]"):
        open_checkpoint(str(directory))


def test_unsupported_type(hf_llama: HFLlama) -> None:
    directory = hf_llama()
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].double()
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="F64"):
        open_checkpoint(str(directory))


def test_tensor_in_two_shards(hf_llama: HFLlama) -> None:
    directory = hf_llama(shards=3)
    extra = directory / "model-00002-of-00003.safetensors"
    save_file(load_file(extra) | {"model.norm.weight": torch.zeros(64)}, extra)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is in"):
        open_checkpoint(str(directory))


@pytest.mark.parametrize(
    "index", ["", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../../x.safetensors"}}']
)
def test_damaged_index(hf_llama: HFLlama, index: str) -> None:
    directory = hf_llama(shards=2)
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="index"):
        open_checkpoint(str(directory))


def test_missing_shard(hf_llama: HFLlama) -> None:
    directory = hf_llama(shards=2)
    (directory / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of its 2 safetensors files: model-00001") as caught:
        open_checkpoint(str(directory))
    assert "Download what is missing" in caught.value.hint


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_missing_files(hf_llama: HFLlama, missing: str) -> None:
    directory = hf_llama()
    (directory / missing).unlink()
    with pytest.raises(CheckpointError, match=missing) as caught:
        open_checkpoint(str(directory))
    assert caught.value.hint


def test_one_safetensors_file_is_no_model(hf_llama: HFLlama) -> None:
    with pytest.raises(CheckpointError, match="one file of a checkpoint"):
        open_checkpoint(str(hf_llama() / "model.safetensors"))


def test_a_tensor_of_many_dimensions_costs_no_time(hf_llama: HFLlama) -> None:
    """Their product has millions of digits."""
    directory = hf_llama()
    (directory / "model.safetensors").write_bytes(header({"a": entry(0, 0, [10**18] * 300_000 + [0])}))
    start = time.process_time()
    with pytest.raises(CheckpointError, match="no proper"):
        open_checkpoint(str(directory))
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "x/../b.safetensors"}}, "not a safetensors file beside it"),
        ({"weight_map": {"a": ["\x1b" * 10**5]}}, r"names \['.{1,120}\], which"),
        ({"weight_map": {str(n): f"{n}.safetensors" for n in range(1025)}}, "more than 1024 files"),
        ({"weight_map": {}}, "names no tensors"),
        ([], "names no tensors"),
    ],
)
def test_damaged_indexes(hf_llama: HFLlama, index: Any, message: str) -> None:
    directory = hf_llama("many", shards=3)
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(directory))


def test_shards_of_too_many_tensors_are_not_all_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "MAX_TENSORS", 5)
    opened: list[Shard] = []
    with pytest.raises(CheckpointError, match="more than 5 tensors"):
        TensorFiles(Shard(opened) for _ in range(100))
    assert [shard.closed for shard in opened] == [True] * 3


class Shard:
    """Two tensors of names of its own."""

    local = True

    def __init__(self, opened: list[Shard]) -> None:
        self.where = f"shard {len(opened)}"
        self.closed = False
        names = [f"{len(opened)}.{n}" for n in range(2)]
        self.tensors = {name: StoredTensor(name, (0,), "F32", 8, 0) for name in names}
        opened.append(self)

    def tensor(self, name: str) -> RawTensor:
        raise NotImplementedError

    def read(self, offset: int, length: int) -> bytes:
        raise NotImplementedError

    def release(self) -> None: ...

    def close(self) -> None:
        self.closed = True
