"""The stored tensors of a quantized matrix: their names, and whether they fit together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

from ....swarm.errors import CheckpointError, UnsupportedModelError
from ..qtypes import HF_GROUPED, Quantization, Scheme
from ..raw_tensor import RawTensor
from ..tensors import TensorInfo, TensorSource

OF_ANOTHER = "The file is damaged, or its configuration belongs to another model."


class Format(Protocol):
    """How one quantizer writes matrices. ``name``: a matrix as plain checkpoints call it."""

    def stored(self, name: str) -> tuple[str, ...]:
        """What may make up ``name``."""
        ...

    def found(self, parts: Parts) -> TensorInfo | None:
        """What ``parts`` are; None where they are not of this format. Reads only names, types and shapes."""
        ...

    def tensor(self, info: TensorInfo, source: TensorSource) -> RawTensor:
        """The matrix that ``found`` has told of. Reads what is small."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """Of matrix ``name``, which has ``shape`` by the configuration. ``where``: the file, for messages."""

    manifest: Mapping[str, TensorInfo]
    name: str
    shape: tuple[int, ...]
    quantization: Quantization | None
    where: str

    def get(self, name: str) -> TensorInfo | None:
        return self.manifest.get(name)

    def need(self, name: str, beside: str) -> TensorInfo:
        """CheckpointError where ``name`` is missing, though tensor ``beside`` is there."""
        info = self.manifest.get(name)
        if info is None:
            raise CheckpointError(
                f"{self.where} has {beside} without {name}",
                hint="The file is damaged, or was quantized in a way that is not supported.",
            )
        return info

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def cols(self) -> int:
        return self.shape[-1]

    def matrix(self, qtype: str, *parts: TensorInfo | None, scheme: Scheme | None = None) -> TensorInfo:
        """Made of ``parts``. UnsupportedModelError for groups that we do not have; CheckpointError unless
        ``scheme`` is one that the configuration tells of."""
        if qtype not in HF_GROUPED:
            raise UnsupportedModelError(
                f"{self.name} of {self.where} is quantized as {qtype}, which is not supported",
                hint="Groups of 16, 32, 64 … 1024 columns are. Use a GGUF file, or the plain checkpoint.",
            )
        told = self.quantization.schemes if self.quantization else ()
        if scheme is not None and told and scheme not in told:
            raise CheckpointError(
                f"{self.name} of {self.where} has {_worded(scheme)}; its configuration says "
                f"{' or '.join(map(_worded, told[:3]))}",
                hint="The weights belong to another configuration: download both again.",
            )
        return TensorInfo(self.name, self.shape, qtype, sum(part.nbytes for part in parts if part))

    def misfit(self, *parts: TensorInfo | None) -> CheckpointError:
        """What to raise where shapes or types do not fit together."""
        there = ", ".join(f"{part.qtype} {list(part.shape)}" for part in parts if part)
        return CheckpointError(
            f"the quantized matrix {self.name} of {self.where} is {there}, "
            f"the configuration says {list(self.shape)}",
            hint=OF_ANOTHER,
        )


def _worded(scheme: Scheme) -> str:
    bits, group, rows = scheme
    if rows == 0:
        return f"{bits} bits with one scale"
    block = f"blocks of {rows} rows and {group} columns" if rows > 1 else f"groups of {group}"
    return f"{bits} bits in {block if group else 'rows'}"


def sibling(name: str, suffix: str) -> str:
    """The stored tensor ``suffix`` beside ``weight``. Stacks have no ``.weight`` in their names."""
    stem = name.removesuffix(".weight")
    return f"{stem}.{suffix}" if stem != name else f"{name}_{suffix.removeprefix('weight_')}"
