"""Tensors of a HuggingFace checkpoint: one safetensors file or many, here or still on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Protocol

from ....swarm.errors import CheckpointError
from ..bounded_json import JsonBounds, read_json
from ..mapped_file import MappedFile, PresentBytes
from ..not_a_model import download_again, file_names, no_model_error
from ..raw_tensor import RawTensor
from ..shown import shown
from ..tensors import TensorInfo
from .safetensors_header import StoredTensor, header_length, parse_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARDS = 1024
"""One model has at most this many files; the largest in use have 191."""
MAX_TENSORS = 1 << 18
"""One model has at most this many tensors, in all files together."""
_PART = re.compile(r"(.{1,160})-([0-9]{5})-of-([0-9]{5})\.safetensors")
_SHARD_NAME = re.compile(r"[^/\\\0]{1,200}\.safetensors")
_INDEX_BOUNDS = JsonBounds(nbytes=64 << 20, values=2 * MAX_TENSORS)


class ShardFile(Protocol):
    """One safetensors file. ``local`` is False for one of which only the header was fetched."""

    where: str
    local: bool
    tensors: Mapping[str, StoredTensor]

    def tensor(self, name: str) -> RawTensor: ...

    def release(self) -> None: ...

    def close(self) -> None: ...


class LocalShard:
    local = True

    def __init__(self, path: Path, presence: PresentBytes | None = None) -> None:
        """``presence``: which bytes are there, where not all are."""
        self.where = str(path)
        file = self._file = MappedFile(path, presence)
        length = header_length(file.slice(0, 8).tobytes(), file.size, self.where)
        self.tensors: Mapping[str, StoredTensor] = parse_header(
            file.slice(8, length).tobytes(), file.size, self.where
        )

    def tensor(self, name: str) -> RawTensor:
        stored = self.tensors[name]
        rows = prod(stored.shape[:-1])
        raw = self._file.slice(stored.offset, stored.nbytes).reshape(rows, -1)
        return RawTensor(name, stored.shape, stored.dtype, raw, check=self._file.check)

    def release(self) -> None:
        self._file.release()

    def close(self) -> None:
        self._file.close()


class SafetensorsSource:
    """All shards of a model as one. A tensor in two shards is an error."""

    def __init__(self, shards: Iterable[ShardFile]) -> None:
        """Opens them one after the other. If one is wrong, closes those that it has opened."""
        self._shards: list[ShardFile] = []
        self._home: dict[str, ShardFile] = {}
        self._manifest: dict[str, TensorInfo] = {}
        self.manifest: Mapping[str, TensorInfo] = self._manifest
        try:
            for shard in shards:
                self._shards.append(shard)
                self._add(shard)
        except BaseException:
            self.close()
            raise

    def _add(self, shard: ShardFile) -> None:
        if len(self._manifest) + len(shard.tensors) > MAX_TENSORS:
            raise CheckpointError(f"{shard.where} is of a model of more than {MAX_TENSORS} tensors")
        for name, stored in shard.tensors.items():
            if name in self._manifest:
                raise CheckpointError(f"tensor {name} is in {self._home[name].where} and in {shard.where}")
            self._home[name] = shard
            self._manifest[name] = TensorInfo(name, stored.shape, stored.dtype, stored.nbytes)

    def tensor(self, name: str) -> RawTensor:
        return self._shard(name).tensor(name)

    def place(self, name: str) -> tuple[Path, int, int]:
        """Where a tensor's bytes lie: file, offset, length. CheckpointError for a name that is not there."""
        shard = self._shard(name)
        stored = shard.tensors[name]
        return Path(shard.where), stored.offset, stored.nbytes

    def release(self) -> None:
        for shard in self._shards:
            shard.release()

    def close(self) -> None:
        for shard in self._shards:
            shard.close()

    def _shard(self, name: str) -> ShardFile:
        try:
            return self._home[name]
        except KeyError:
            raise CheckpointError(f"the checkpoint has no tensor {name}") from None


def open_directory(directory: Path) -> SafetensorsSource:
    """Every shard of a local HuggingFace directory."""
    return SafetensorsSource(LocalShard(directory / name) for name in weight_files(directory))


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
        raise CheckpointError(
            f"{directory} lacks {len(missing)} of its {len(names)} safetensors files: {missing[0]}",
            hint=download_again(directory, f"Download what is missing, too: {named_by} says what that is."),
        )
    return names


def _numbered(directory: Path) -> list[str]:
    """The names of a whole row of numbered parts, of which at least one is there. A tensor in two of them is
    found when they are opened."""
    rows: dict[tuple[str, int], None] = {}
    for name in file_names(directory):
        if (match := _PART.fullmatch(name)) and 0 < int(match[2]) <= int(match[3]) <= MAX_SHARDS:
            rows[match[1], int(match[3])] = None
    if not rows:
        raise no_model_error(directory, f"neither {SINGLE} nor {INDEX}")
    if len(rows) > 1:
        found = ", ".join(f"{stem}-…-of-{count:05}.safetensors" for stem, count in sorted(rows)[:4])
        raise CheckpointError(
            f"{directory} holds parts of several models, and no {INDEX} that tells them apart: {found}",
            hint="Move each model's files into a folder of its own.",
        )
    ((stem, count),) = rows
    return [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def read_index(path: Path) -> dict[str, str]:
    """Tensor name → file name. CheckpointError for a damaged index, or one that leaves its directory."""
    document = read_json(path, _INDEX_BOUNDS)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} names no tensors", hint="Download it again.")
    for file in weight_map.values():
        if not isinstance(file, str) or not _SHARD_NAME.fullmatch(file):
            raise CheckpointError(f"{path} names {shown(file)}, which is not a safetensors file beside it")
    if len(set(weight_map.values())) > MAX_SHARDS:
        raise CheckpointError(f"{path} names more than {MAX_SHARDS} files")
    return weight_map


def shard_names(weight_map: Mapping[str, str]) -> list[str]:
    return sorted(set(weight_map.values()))
