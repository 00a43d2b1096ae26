"""Tensors of a HuggingFace checkpoint: one safetensors file or many, here or still on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ....swarm.errors import CheckpointError
from ..bounded_json import JsonBounds, read_json
from ..files.mapped_file import MappedFile, PresentBytes
from ..files.numbered import MAX_FILES, numbered
from ..files.tensor_files import MAX_TENSORS, MappedTensors, TensorFiles
from ..not_a_model import file_names, lacks_error, no_model_error
from ..values.shown import shown
from .safetensors_header import header_length, parse_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_ENDING = ".safetensors"
_SHARD_NAME = re.compile(r"[^/\\\0]{1,200}\.safetensors")
_INDEX_BOUNDS = JsonBounds(nbytes=64 << 20, values=2 * MAX_TENSORS)


class LocalShard(MappedTensors):
    """A safetensors file on this disk."""

    def __init__(self, path: Path, presence: PresentBytes | None = None) -> None:
        """``presence``: which bytes are there, where not all are."""
        file = MappedFile(path, presence)
        length = header_length(file.slice(0, 8).tobytes(), file.size, str(path))
        header = file.slice(8, length).tobytes()
        super().__init__(file, parse_header(header, file.size, str(path)), 8 + length)


def open_directory(directory: Path) -> TensorFiles[LocalShard]:
    """Every shard of a local HuggingFace directory."""
    return TensorFiles(LocalShard(directory / name) for name in weight_files(directory))


def weight_files(directory: Path) -> list[str]:
    """The files with the weights of a HuggingFace directory, sorted: model.safetensors; else those of the
    index; else all parts of one row, ``NAME-00001-of-00004.safetensors``. CheckpointError where one of them
    is missing, or where there are none."""
    if (directory / SINGLE).is_file():
        return [SINGLE]
    if (directory / INDEX).is_file():
        names, named_by = shard_names(read_index(directory / INDEX)), INDEX
    else:
        names, named_by = _numbered(directory), "the number in its name"
    if missing := [name for name in names if not (directory / name).is_file()]:
        hint = f"Download what is missing, too: {named_by} says what that is."
        raise lacks_error(directory, missing, f"its {len(names)} safetensors files", hint)
    return names


def _numbered(directory: Path) -> list[str]:
    """The names of a whole row of numbered parts, of which at least one is there. A tensor in two of them is
    found when they are opened."""
    if names := only_row(file_names(directory), str(directory)):
        return names
    raise no_model_error(directory, f"neither {SINGLE} nor {INDEX}")


def only_row(names: Iterable[str], where: str) -> list[str]:
    """All files of the one model of which files with numbers are among ``names``; none: there is none.
    CheckpointError where they are of several."""
    rows = {row for name in names if (row := numbered(name)) and row.ending == _ENDING}
    if len(rows) > 1:
        found = ", ".join(f"{row.stem}-…-of-{row.count:05}{_ENDING}" for row in sorted(rows, key=str)[:4])
        raise CheckpointError(
            f"{where} holds parts of several models, and no {INDEX} that tells them apart: {found}",
            hint="Move each model's files into a folder of its own.",
        )
    return rows.pop().names if rows else []


def read_index(path: Path) -> dict[str, str]:
    """Tensor name → file name. CheckpointError for a damaged index, or one that leaves its directory."""
    document = read_json(path, _INDEX_BOUNDS)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} names no tensors", hint="Download it again.")
    for file in weight_map.values():
        if not isinstance(file, str) or not _SHARD_NAME.fullmatch(file):
            raise CheckpointError(f"{path} names {shown(file)}, which is not a safetensors file beside it")
    if len(set(weight_map.values())) > MAX_FILES:
        raise CheckpointError(f"{path} names more than {MAX_FILES} files")
    return weight_map


def shard_names(weight_map: Mapping[str, str]) -> list[str]:
    return sorted(set(weight_map.values()))
