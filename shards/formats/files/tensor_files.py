"""The tensors of one file, and of several that are one model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from ....swarm.errors import CheckpointError
from ..raw_tensor import RawTensor
from ..tensors import TensorInfo
from .mapped_file import MappedFile

MAX_TENSORS = 1 << 18
"""One model has at most this many tensors, in all files together."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """``shape`` as HuggingFace has it. ``qtype``: see ``TensorInfo``. ``offset``: first byte, from the start
    of the file."""

    name: str
    shape: tuple[int, ...]
    qtype: str
    offset: int
    nbytes: int


class TensorFile(Protocol):
    """One file."""

    where: str
    tensors: Mapping[str, StoredTensor]

    def tensor(self, name: str) -> RawTensor: ...

    def release(self) -> None: ...

    def close(self) -> None: ...


class MappedTensors:
    """A file on this disk. ``head``: how many of its first bytes every opening reads."""

    def __init__(self, file: MappedFile, tensors: Mapping[str, StoredTensor], head: int) -> None:
        self.where = str(file.path)
        self.file = file
        self.tensors = tensors
        self.head = head

    def tensor(self, name: str) -> RawTensor:
        stored = self.tensors[name]
        raw = self.file.slice(stored.offset, stored.nbytes).reshape(prod(stored.shape[:-1]), -1)
        return RawTensor(name, stored.shape, stored.qtype, raw, check=self.file.check)

    def release(self) -> None:
        self.file.release()

    def close(self) -> None:
        self.file.close()


File = TypeVar("File", bound=TensorFile)


class TensorFiles(Generic[File]):
    """All files of a model as one ``TensorSource``, under the files' own names. Reads nothing but headers
    when opened."""

    def __init__(self, files: Iterable[File]) -> None:
        """Opens them one after the other. If one is wrong, closes those that it has opened. CheckpointError
        also for a tensor that is in two files."""
        self.files: list[File] = []
        self._home: dict[str, File] = {}
        self._manifest: dict[str, TensorInfo] = {}
        self.manifest: Mapping[str, TensorInfo] = self._manifest
        try:
            for file in files:
                self.files.append(file)
                self._add(file)
        except BaseException:
            self.close()
            raise

    def _add(self, file: File) -> None:
        if len(self._manifest) + len(file.tensors) > MAX_TENSORS:
            raise CheckpointError(f"{file.where} is of a model of more than {MAX_TENSORS} tensors")
        for name, stored in file.tensors.items():
            if name in self._manifest:
                raise CheckpointError(
                    f"tensor {name} is in {self._home[name].where} and in {file.where}",
                    hint="They are of several models, or damaged: download all files from one place.",
                )
            self._home[name] = file
            self._manifest[name] = TensorInfo(name, stored.shape, stored.qtype, stored.nbytes)

    def tensor(self, name: str) -> RawTensor:
        return self._file(name).tensor(name)

    def place(self, name: str) -> tuple[Path, int, int]:
        """Where a tensor's bytes lie: file, offset, length. CheckpointError for a name that is not there."""
        file = self._file(name)
        stored = file.tensors[name]
        return Path(file.where), stored.offset, stored.nbytes

    def release(self) -> None:
        for file in self.files:
            file.release()

    def close(self) -> None:
        for file in self.files:
            file.close()

    def _file(self, name: str) -> File:
        try:
            return self._home[name]
        except KeyError:
            raise CheckpointError(f"the checkpoint has no tensor {name}") from None
