from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.files.mapped_file import MappedFile
from swarm_node.shards.loading import load_client_model
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.errors import CheckpointError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 64)
    return path


def test_a_file_that_was_cut_short_is_not_touched(path: Path) -> None:
    """Reading would end the process."""
    file = MappedFile(path)
    os.truncate(path, 0)
    with pytest.raises(CheckpointError, match="was changed while it was in use"):
        file.slice(0, 10)
    file.close()


def test_a_file_that_was_written_into_is_not_what_was_opened(path: Path) -> None:
    file = MappedFile(path)
    status = path.stat()
    with path.open("r+b") as opened:
        opened.write(b"?")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(CheckpointError, match="was changed"):
        file.slice(0, 10)
    file.close()


@pytest.mark.parametrize("replaced", [True, False])
def test_one_that_was_replaced_or_removed_stays(path: Path, replaced: bool) -> None:
    file = MappedFile(path)
    if replaced:
        other = path.with_name("other")
        other.write_bytes(b"other")
        other.replace(path)
    else:
        path.unlink()
    assert file.slice(0, 4).tobytes() == b"\0\1\2\3"
    descriptor = file.descriptor()
    file.close()
    file.check()
    assert os.read(descriptor, 4) == b"\0\1\2\3"
    os.close(descriptor)


def test_a_file_that_gets_its_final_name_meanwhile_can_be_read_apart_from_its_map(path: Path) -> None:
    file = MappedFile(path)
    path.rename(path.with_name("whole"))
    first, second = file.descriptor(), file.descriptor()
    assert os.read(first, 4) == os.read(second, 4) == b"\0\1\2\3"  # each at a place of its own
    for descriptor in (first, second):
        os.close(descriptor)
    file.close()


def test_no_descriptor_stays_open(path: Path) -> None:
    before = os.listdir("/dev/fd")
    MappedFile(path).close()
    path.write_bytes(b"")
    for bad in (path, path.with_name("gone")):
        with pytest.raises(CheckpointError, match=r"empty|cannot read"):
            MappedFile(bad)
    assert os.listdir("/dev/fd") == before


@pytest.mark.parametrize("form", ["gguf", "huggingface"])
def test_a_client_says_that_its_embedding_is_gone(
    hf_llama: Callable[..., Path], gguf_llama: Callable[..., Path], form: str
) -> None:
    path = gguf_llama("F32") if form == "gguf" else hf_llama()
    with open_checkpoint(str(path), client=True) as checkpoint:
        client = load_client_model(checkpoint, LoadOptions(device="cpu", dtype="float32", quantize="none"))
        assert np.isfinite(client.embed([1, 2])).all()
        os.truncate(path if form == "gguf" else path / "model.safetensors", 100)
        with pytest.raises(CheckpointError, match="was changed while it was in use"):
            client.embed([1, 2])
