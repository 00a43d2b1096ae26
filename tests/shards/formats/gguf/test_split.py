"""GGUF models of several files: as the gguf package splits them, and as nobody should."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scripts.lab.fuzz.gguf_file import GGUFFile, encoded_value
from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.files.mapped_file import place_in_file
from swarm_node.shards.formats.gguf.reader import gguf_files, gguf_models, open_gguf
from swarm_node.shards.pieces.hashing import model_files
from swarm_node.swarm.errors import CheckpointError, SwarmError

GGUFLlama = Callable[..., Path]


@pytest.fixture
def first(gguf_llama: GGUFLlama, tmp_path: Path) -> Path:
    """The first of several parts."""
    return gguf_llama("Q4_0", split=6, bias=True)


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return one.manifest == other.manifest and all(
        np.array_equal(one.tensor(name).dequantize(), other.tensor(name).dequantize())
        for name in one.manifest
    )


@pytest.mark.parametrize("first_without_tensors", [False, True])
@pytest.mark.parametrize("split", [1, 6, 15])
def test_parts_are_the_model_that_was_split(
    gguf_llama: GGUFLlama, split: int, first_without_tensors: bool
) -> None:
    whole = gguf_llama("Q4_0")
    first = gguf_llama("Q4_0", name="p.gguf", split=split, first_without_tensors=first_without_tensors)
    assert first.name.startswith("p-00001-of-000")
    with open_checkpoint(str(whole)) as one, open_checkpoint(str(first)) as other:
        assert one.config == other.config
        assert same(one, other)
        assert (one.ref.name, other.ref.name) == ("tiny", "p")
        assert one.ref.digest != other.ref.digest  # other files
        assert one.tokenizer().encode("ab") == other.tokenizer().encode("ab")


def test_any_part_and_the_folder_are_the_model(first: Path) -> None:
    parts = gguf_files(first)
    assert len(parts) == 4
    assert list(model_files(first)) == [f"model-0000{n}-of-00004.gguf" for n in (1, 2, 3, 4)]
    digests = set()
    for path in (*parts, first.parent):
        with open_checkpoint(str(path), pieces=True) as checkpoint:
            assert checkpoint.ref.name == "tiny"
            digests.add((checkpoint.ref.digest, checkpoint.ref.root))
    assert len(digests) == 1


def test_the_name_on_the_disk_is_no_part_of_the_model(first: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for part in gguf_files(first):
        shutil.copy(part, other / part.name.replace("tiny", "another"))
    with open_checkpoint(str(first)) as one, open_checkpoint(str(other)) as two:
        assert one.ref.digest == two.ref.digest
        assert two.ref.name == "another"


def test_each_tensor_is_found_in_its_own_file(first: Path) -> None:
    source = open_gguf(first)
    for name in source.manifest:
        path, offset, size = source.place(name)
        raw = source.tensor(name)
        place = place_in_file(raw.stored)
        assert place is not None
        assert (place[0].path, place[1], raw.nbytes) == (path, offset, size)
    assert len({source.place(name)[0] for name in source.manifest}) == 4
    source.close()


def test_several_models_in_a_folder_are_named(first: Path, gguf_llama: GGUFLlama) -> None:
    """As a download of a repository of quantizations looks."""
    folder = first.parent
    gguf_llama("Q8_0", name="tiny.Q8_0.gguf")
    (folder / "BF16").mkdir()
    gguf_llama("BF16", name="BF16/tiny-BF16.gguf", split=8)
    (folder / "mmproj-F16.gguf").touch()
    (folder / "tiny.imatrix.gguf").touch()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "old.gguf").touch()
    models = gguf_models(folder)
    assert sorted(models.values()) == ["mmproj-F16", "tiny", "tiny-BF16", "tiny.Q8_0", "tiny.imatrix"]
    with pytest.raises(
        CheckpointError, match=r"holds 3 GGUF models: 'tiny', 'tiny\.Q8_0', 'tiny-BF16'"
    ) as raised:
        open_checkpoint(str(folder))
    assert all((str(path) in raised.value.hint) == bool(path.stat().st_size) for path in models)
    for path, name in models.items():
        if path.stat().st_size:
            with open_checkpoint(str(path)) as checkpoint:
                assert checkpoint.ref.name == name
    with open_checkpoint(str(folder / "BF16")) as checkpoint:
        assert checkpoint.ref.name == "tiny-BF16"


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_missing_part_is_named(first: Path, number: int) -> None:
    parts = gguf_files(first)
    parts[number - 1].unlink()
    given = next(part for part in parts if part.is_file())
    missing = rf"lacks 1 of the 4 files of tiny: tiny-0000{number}-of-00004\.gguf"
    for path in (given, first.parent):
        with pytest.raises(CheckpointError, match=missing):
            open_checkpoint(str(path))
        with pytest.raises(CheckpointError, match=missing):
            model_files(path)


def swap(parts: list[Path]) -> None:
    parts[1].rename(parts[1].with_name("aside"))
    parts[2].rename(parts[1])
    parts[1].with_name("aside").rename(parts[2])


def rename_one(parts: list[Path]) -> None:
    for part in parts[1:]:
        part.unlink()
    parts[0].rename(parts[0].with_name("alone.gguf"))


def rename_all(parts: list[Path]) -> None:
    for part in parts[:3]:
        part.rename(part.with_name(part.name.replace("00004", "00003")))
    parts[3].unlink()


def copy_one(parts: list[Path]) -> None:
    shutil.copy(parts[1], parts[2])


def with_key(part: Path, key: str, value: object) -> None:
    file = GGUFFile.parse(part.read_bytes())
    file.keys = [*(each for each in file.keys if each[0] != key), (key, encoded_value(value))]
    part.write_bytes(file.encoded())


def set_key(key: str, value: int) -> Callable[[list[Path]], None]:
    return lambda parts: with_key(parts[2], key, value)


def double(parts: list[Path]) -> None:
    """The last part has a tensor of the third under its name."""
    third, last = (GGUFFile.parse(part.read_bytes()) for part in parts[2:])
    last.tensors[0] = (third.tensors[0][0], *last.tensors[0][1:])
    parts[3].write_bytes(last.encoded())


def lose(parts: list[Path]) -> None:
    file = GGUFFile.parse(parts[2].read_bytes())
    del file.tensors[0]
    parts[2].write_bytes(file.encoded())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, "is part 3 of a model, by its name part 2"),
        (copy_one, "is part 2 of a model, by its name part 3"),
        (rename_one, "is one of 4 parts of a model, by its name of 1"),
        (rename_all, "is one of 4 parts of a model, by its name of 3"),
        (set_key("split.no", 3), "is part 4 of a model, by its name part 3"),
        (set_key("split.no", 65535), "split.no is 65535"),
        (set_key("split.count", 5), "is not of the same model as .*: they differ in split.count"),
        (set_key("split.tensors.count", 7), "they differ in split.tensors.count"),
        (double, "tensor .* is in .*00003-of-00004.gguf and in .*00004-of-00004.gguf"),
        (lose, "says that all parts together have 21 tensors, they have 20"),
    ],
)
def test_what_is_not_one_model_is_refused(
    first: Path, change: Callable[[list[Path]], None], message: str
) -> None:
    change(gguf_files(first))
    path = next(first.parent.glob("*.gguf"))
    with pytest.raises(CheckpointError, match=message) as raised:
        open_checkpoint(str(path))
    assert raised.value.hint or "expected a whole number" in raised.value.message


def test_parts_of_two_models_with_the_same_names_are_two_models(first: Path, gguf_llama: GGUFLlama) -> None:
    """Nothing in the headers tells them apart; the digest does."""
    other = first.parent / "other"
    other.mkdir()
    second = gguf_llama("Q4_0", split=6, bias=True, seed=1, name="other/tiny.gguf")
    with open_checkpoint(str(first)) as checkpoint:
        before = checkpoint.ref.digest
    shutil.copy(gguf_files(second)[2], gguf_files(first)[2])
    with open_checkpoint(str(first)) as checkpoint:
        assert checkpoint.ref.digest != before


def test_another_architecture_in_a_part_is_another_model(first: Path) -> None:
    with_key(gguf_files(first)[1], "general.architecture", "qwen2")
    with pytest.raises(CheckpointError, match=r"they differ in general\.architecture"):
        open_checkpoint(str(first))


@pytest.mark.parametrize("number", [0, 2])
def test_a_part_that_is_replaced_while_open_stays_as_it_was(first: Path, number: int) -> None:
    part = gguf_files(first)[number]
    with open_checkpoint(str(first)) as checkpoint:
        before = {name: checkpoint.tensor(name).dequantize() for name in checkpoint.manifest}
        other = part.with_name("other")
        other.write_bytes(bytes(part.stat().st_size))
        other.replace(part)
        for name, values in before.items():
            assert np.array_equal(checkpoint.tensor(name).dequantize(), values)


@pytest.mark.parametrize("number", [0, 2])
def test_a_part_that_is_written_into_while_open_is_noticed(first: Path, number: int) -> None:
    part = gguf_files(first)[number]
    with open_checkpoint(str(first)) as checkpoint:
        with part.open("r+b") as file:
            file.truncate(part.stat().st_size - 32)
        with pytest.raises(CheckpointError, match="was changed while it was in use"):
            [checkpoint.tensor(name) for name in checkpoint.manifest]
        with pytest.raises(SwarmError, match="changed while it was loaded"):
            checkpoint.release()
