"""What makes two models one: nothing but the bytes of the files that shape an answer, all of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.pieces.digest import (
    SMALL_FILES,
    FileHash,
    ModelIdentity,
    Part,
    gguf_names,
    identity_of,
)
from swarm_node.shards.pieces.hashing import manifest_of, model_identity
from swarm_node.swarm.errors import CheckpointError
from tests.shards.pieces.differing import differing_parts

HFLlama = Callable[..., Path]


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_is_what_the_docs_say() -> None:
    config = FileHash("config.json", 3, b"\1" * 32)
    weights = FileHash("model.safetensors", 70, b"\2" * 32)
    template = FileHash("chat_template.jinja", 5, b"\3" * 32)
    found = identity_of([weights, template, config])
    parts = [
        sha(f'[["config.json",3,"{"01" * 32}"]]'),
        sha(f'[["model.safetensors",70,"{"02" * 32}"]]'),
        sha("[]"),
        sha(f'[["chat_template.jinja",5,"{"03" * 32}"]]'),
    ]
    assert list(found.parts) == parts
    assert found.digest == sha(json.dumps(["swarm-node model 2", *parts], separators=(",", ":")))


LEAVES = st.builds(
    FileHash,
    st.sampled_from(
        [*SMALL_FILES, *gguf_names(1), *gguf_names(2), "model.safetensors", "model-1.safetensors"]
    ),
    st.integers(0, 3),
    st.sampled_from([bytes(32), b"\1" * 32]),
)


@given(*(st.lists(LEAVES, max_size=4, unique_by=lambda leaf: leaf.name) for _ in "ab"))
@settings(max_examples=200)
def test_only_the_same_files_have_one_digest(a: list[FileHash], b: list[FileHash]) -> None:
    one, other = identity_of(a), identity_of(b)
    assert (one.digest == other.digest) == (set(a) == set(b))
    assert (one.parts == other.parts) == (one == other)


@pytest.fixture
def whole(hf_llama: HFLlama) -> Path:
    """A directory with every kind of file."""
    directory = hf_llama(shards=2)
    for name in SMALL_FILES:
        if not (directory / name).exists():
            (directory / name).write_text("{}")
    return directory


def edits(directory: Path) -> Iterator[tuple[str, Part, Callable[[], object]]]:
    """Each a change of one thing that shapes an answer."""
    for name, part in SMALL_FILES.items():
        file = directory / name
        yield name, part, lambda file=file: file.write_bytes(file.read_bytes() + b" ")  # type: ignore[misc]
        if name not in ("config.json", "model.safetensors.index.json"):
            yield f"no {name}", part, file.unlink
    for shard in sorted(directory.glob("*.safetensors")):
        for tensor in load_file(shard):

            def add(shard: Path = shard, tensor: str = tensor) -> None:
                weights = load_file(shard)
                weights[tensor].view(-1)[-1] += 1
                save_file(weights, shard)

            yield tensor, Part.WEIGHTS, add


def test_a_change_of_anything_makes_another_model_and_says_what_differs(whole: Path, tmp_path: Path) -> None:
    before = model_identity(whole)
    seen = {before.digest}
    copy = tmp_path / "copy"
    names = [name for name, _, _ in edits(whole)]
    assert sum("layers" in name for name in names) > 30
    for number, name in enumerate(names):
        shutil.copytree(whole, copy)
        _, part, edit = list(edits(copy))[number]
        edit()
        after = model_identity(copy)
        shutil.rmtree(copy)
        assert differing_parts(after, before) == [part], name
        assert after.digest not in seen, name
        seen.add(after.digest)


def test_every_key_of_the_configuration_counts(hf_llama: HFLlama, tmp_path: Path) -> None:
    directory = hf_llama()
    document = json.loads((directory / "config.json").read_text())
    seen = {model_identity(directory).digest}
    for key in document:
        (directory / "config.json").write_text(json.dumps({**document, key: "another"}))
        seen.add(model_identity(directory).digest)
    assert len(seen) == len(document) + 1


def test_where_a_model_lies_and_what_lies_beside_it_do_not_count(whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "another name"
    shutil.copytree(whole, other)
    (other / "README.md").write_text("no part of the model")
    (other / "pytorch_model.bin").write_bytes(b"nor this")
    with open_checkpoint(str(whole)) as one, open_checkpoint(str(other)) as two:
        assert one.ref.digest == two.ref.digest
        assert one.ref.name != two.ref.name


def test_an_index_that_nobody_reads_is_no_part(hf_llama: HFLlama) -> None:
    directory = hf_llama()
    before = model_identity(directory)
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    assert model_identity(directory) == before


@pytest.mark.parametrize("place", ["header", "embedding", "last"])
def test_any_byte_of_a_gguf_file_counts(gguf_llama: Callable[..., Path], place: str, tmp_path: Path) -> None:
    path = gguf_llama("F32")
    data = bytearray(path.read_bytes())
    at = {"header": data.index(b"llama.context_length") + 24, "embedding": len(data) // 3, "last": -1}[place]
    other = tmp_path / "other.gguf"
    data[at] ^= 1
    other.write_bytes(data)
    with open_checkpoint(str(path)) as one:
        assert one.identity != model_identity(other)
        shutil.copy(path, tmp_path / "copy.gguf")
        assert one.identity == model_identity(tmp_path / "copy.gguf")


def test_a_manifest_says_of_which_model_it_is(whole: Path, gguf_llama: Callable[..., Path]) -> None:
    for path in (whole, gguf_llama("Q4_0")):
        with open_checkpoint(str(path)) as checkpoint:
            assert manifest_of(path).identity == checkpoint.identity
    small = manifest_of(whole, piece_size=16 * 1024)  # in other pieces it is the same model
    assert small.identity == model_identity(whole)


@pytest.mark.parametrize("change", ["overwrite", "move", "replace", "remove"])
def test_weights_that_change_between_hashing_and_loading_are_not_served(whole: Path, change: str) -> None:
    path = whole / "model-00002-of-00002.safetensors"
    with open_checkpoint(str(whole)) as checkpoint:
        checkpoint.release()
        time.sleep(0.02)  # times of change have the kernel's tick
        match change:
            case "overwrite":
                with path.open("r+b") as file:
                    file.seek(-1, os.SEEK_END)
                    file.write(b"x")
                with pytest.raises(CheckpointError, match="changed while it was loaded"):
                    checkpoint.release()
                return
            case "move":
                path.rename(path.with_name("elsewhere"))
            case "replace":
                other = path.with_name("other")
                other.write_bytes(bytes(path.stat().st_size))
                other.replace(path)
            case "remove":
                path.unlink()
        checkpoint.release()  # what is open is what was hashed


def test_a_directory_that_lacks_a_shard_has_no_identity(whole: Path) -> None:
    (whole / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of its 2 safetensors files"):
        model_identity(whole)


def test_the_real_model_opens_again_without_being_read(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_checkpoint(str(smollm2_path)) as checkpoint:
        identity = checkpoint.identity
    monkeypatch.setattr("swarm_node.shards.pieces.file_hashes._Reading", None)
    with open_checkpoint(str(smollm2_path)) as checkpoint:
        assert checkpoint.identity == identity == ModelIdentity(identity.parts)
