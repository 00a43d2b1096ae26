"""Tensors of a GGUF file under its own names."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

from ....swarm.errors import CheckpointError
from ..mapped_file import MappedFile, PresentBytes
from ..raw_tensor import RawTensor
from ..tensors import TensorInfo
from .header import GGUFHeader, GGUFTensor


class GGUFSource:
    """``header`` of the file, and its tensors. Reads nothing but the header when opened."""

    def __init__(self, path: Path, presence: PresentBytes | None = None) -> None:
        """``presence``: which bytes are there, where not all are."""
        self.file = MappedFile(path, presence)
        self.header = GGUFHeader(self.file)
        self.manifest: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, tensor.shape, tensor.qtype, tensor.nbytes)
            for name, tensor in self.header.tensors.items()
        }

    def tensor(self, name: str) -> RawTensor:
        tensor = self._find(name)
        stored = self.file.slice(tensor.offset, tensor.nbytes).reshape(prod(tensor.shape[:-1]), -1)
        return RawTensor(name, tensor.shape, tensor.qtype, stored, check=self.file.check)

    def place(self, name: str) -> tuple[Path, int, int]:
        """Where a tensor's bytes lie: file, offset, length. CheckpointError for a name that is not there."""
        tensor = self._find(name)
        return self.file.path, tensor.offset, tensor.nbytes

    def release(self) -> None:
        self.file.release()

    def close(self) -> None:
        self.file.close()

    def _find(self, name: str) -> GGUFTensor:
        try:
            return self.header.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.file.path} has no tensor {name}") from None
