"""Tensors of a HuggingFace checkpoint: one safetensors file or many, here or still on the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ..swarm.errors import CheckpointError
from .manifest import TensorInfo
from .mapped_file import MappedFile, Presence
from .raw_tensor import RawTensor
from .safetensors_header import StoredTensor, header_length, parse_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MAX_INDEX = 100_000_000


class ShardFile(Protocol):
    """One safetensors file. ``local`` is False for one of which only the header was fetched."""

    where: str
    local: bool
    tensors: Mapping[str, StoredTensor]

    def tensor(self, name: str) -> RawTensor: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def release(self) -> None: ...

    def close(self) -> None: ...


class LocalShard:
    local = True

    def __init__(self, path: Path, presence: Presence | None = None) -> None:
        """``presence``: which bytes are there, where not all are."""
        self.where = str(path)
        file = self._file = MappedFile(path, presence)
        length = header_length(file.slice(0, 8).tobytes(), file.size, self.where)
        self.tensors: Mapping[str, StoredTensor] = parse_header(
            file.slice(8, length).tobytes(), file.size, self.where
        )

    def tensor(self, name: str) -> RawTensor:
        stored = self.tensors[name]
        rows = 1 if len(stored.shape) < 2 else stored.shape[0]
        raw = self._file.slice(stored.offset, stored.nbytes).reshape(rows, -1)
        return RawTensor(name, stored.shape, stored.dtype, raw)

    def read(self, offset: int, length: int) -> bytes:
        return self._file.slice(offset, length).tobytes()

    def release(self) -> None:
        self._file.release()

    def close(self) -> None:
        self._file.close()


class SafetensorsSource:
    """All shards of a model as one. A tensor in two shards is an error."""

    def __init__(self, shards: Sequence[ShardFile]) -> None:
        self._shards = shards
        self._home: dict[str, ShardFile] = {}
        manifest: dict[str, TensorInfo] = {}
        for shard in shards:
            for name, stored in shard.tensors.items():
                if name in manifest:
                    raise CheckpointError(
                        f"tensor {name} is in {self._home[name].where} and in {shard.where}"
                    )
                self._home[name] = shard
                manifest[name] = TensorInfo(name, stored.shape, stored.dtype, stored.nbytes)
        self.manifest: Mapping[str, TensorInfo] = manifest

    def tensor(self, name: str) -> RawTensor:
        return self._shard(name).tensor(name)

    def read(self, name: str, start: int, length: int) -> bytes:
        shard = self._shard(name)
        return shard.read(shard.tensors[name].offset + start, length)

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
    if (directory / SINGLE).is_file():
        return SafetensorsSource([LocalShard(directory / SINGLE)])
    index = directory / INDEX
    if not index.is_file():
        raise CheckpointError(
            f"{directory} holds neither {SINGLE} nor {INDEX}",
            hint="A model is a HuggingFace directory with safetensors files, or a .gguf file.",
        )
    return SafetensorsSource([LocalShard(directory / name) for name in shard_names(read_index(index))])


def read_index(path: Path) -> dict[str, str]:
    """Tensor name → file name. CheckpointError for a damaged index, or one that leaves its directory."""
    try:
        if path.stat().st_size > _MAX_INDEX:
            raise CheckpointError(f"{path} is larger than any index of tensors")
        weight_map = json.loads(path.read_bytes())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a usable index of tensors: {error}", hint="Download it again."
        ) from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} names no tensors", hint="Download it again.")
    for file in weight_map.values():
        if not isinstance(file, str) or "/" in file or "\\" in file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{path} names {file!r}, which is no safetensors file beside it")
    return weight_map


def shard_names(weight_map: Mapping[str, str]) -> list[str]:
    return sorted(set(weight_map.values()))
