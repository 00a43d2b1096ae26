"""The experts of a span within a budget of memory: the C store with its files, its memory and its errors."""

from __future__ import annotations

import ctypes
import errno
import os
import weakref
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ...swarm.errors import CheckpointError, UsageError
from ..kernels.experts import SnMlp, mlp_struct
from ..kernels.library import address, library
from ..layers.memory import lasting_zeros
from .file_linear import FileLinear, SnFileRows

if TYPE_CHECKING:
    from ..formats.blocks.mlp import MlpConfig
    from ..formats.files.mapped_file import MappedFile

READERS = 6
"""Threads that read: the three parts of two experts at a time."""
HALF_LIFE = 256.0
"""After so many more steps of a block, an expert's use counts half."""
_READ, _SHORT = 1, 2
_PROBLEMS = {_SHORT: "was cut short", 3: "was changed"}


class _SnFileMlp(ctypes.Structure):
    _fields_ = (("gate", SnFileRows), ("up", SnFileRows), ("down", SnFileRows))


class _SnStoredExperts(ctypes.Structure):
    _fields_ = (
        ("mlps", ctypes.POINTER(SnMlp)),
        ("files", ctypes.POINTER(_SnFileMlp)),
        ("count", ctypes.c_int32),
    )


class _SnStoreState(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64) for name in ("wanted", "held", "late", "read", "read_bytes", "waited_ns")
    )


class StoreState(NamedTuple):
    """Since the start. Experts: those that steps ``wanted``; of them ``held`` in memory, or ``late``: on the
    way. ``read``: all that were read, in ``read_bytes``. ``waited_s``: of the compute thread."""

    wanted: int
    held: int
    late: int
    read: int
    read_bytes: int
    waited_s: float


class FileMlp(NamedTuple):
    gate_up: FileLinear
    down: FileLinear


class StoredExperts:
    """An ``ExpertWeights`` of a store."""

    def __init__(self, store: ExpertStore, number: int, config: MlpConfig, mlps: Sequence[FileMlp]) -> None:
        self._store = store
        self.number = number
        self.mlps = tuple(mlps)
        self.structs = (SnMlp * len(mlps))(
            *(mlp_struct(config, gate_up.struct, down.struct) for gate_up, down in mlps)
        )

    @property
    def store(self) -> int | None:
        return self._store.handle


class ExpertStore:
    """``add`` each block's experts, then ``start``; after each computation ``check``. For one thread."""

    def __init__(self) -> None:
        self.handle: int | None = None
        self.slots = self.nbytes = 0
        self._blocks: list[StoredExperts] = []
        self._held: list[object] = []  # what the store's pointers point at

    @property
    def count(self) -> int:
        """Experts of all blocks."""
        return sum(len(block.mlps) for block in self._blocks)

    @property
    def needed_bytes(self) -> int:
        """Of memory, for all of them."""
        return self.count * self._slot_bytes()

    def add(self, config: MlpConfig, mlps: Sequence[FileMlp]) -> StoredExperts:
        stored = StoredExperts(self, len(self._blocks), config, mlps)
        self._blocks.append(stored)
        return stored

    def start(self, budget: int, *, readers: int = READERS, half_life: float = HALF_LIFE) -> None:
        """Take memory: at most ``budget`` bytes, but for one expert at least. Nothing is read yet.

        UsageError where the budget holds no expert; OSError where the system refuses threads.
        """
        slot = self._slot_bytes()
        self.slots = min(budget // slot, self.count)
        if self.slots < 1:
            raise UsageError(
                f"{max(budget, 0) / 1e6:.0f} MB are left for experts, one of which takes {slot / 1e6:.0f} MB",
                hint="Allow more --memory, or serve fewer --blocks.",
            )
        memory = lasting_zeros(self.slots * slot)
        descriptors = {file: file.descriptor() for file in self._files()}
        weakref.finalize(self, _close, list(descriptors.values())).atexit = False
        files = [_file_structs(block.mlps, descriptors) for block in self._blocks]
        blocks = (_SnStoredExperts * len(files))(
            *(
                _SnStoredExperts(block.structs, of_block, len(block.mlps))
                for block, of_block in zip(self._blocks, files, strict=True)
            )
        )
        self._held += [memory, files, blocks]
        self.handle = _kernels().sn_store_new(
            blocks, len(files), address(memory), slot, self.slots, readers, half_life
        )
        if self.handle is None:
            raise OSError(f"cannot start {readers} threads that read experts")
        self.nbytes = memory.nbytes
        weakref.finalize(self, _kernels().sn_store_free, self.handle).atexit = False

    def check(self) -> None:
        """CheckpointError if experts could not be read since the last call: what was computed is void."""
        failure = _kernels().sn_store_failure(self.handle)
        if not failure:
            return
        kind, number = failure & 0xFF, failure >> 8
        names = ", ".join(sorted(file.path.name for file in self._files()))
        what = f"could not be read: {os.strerror(number or errno.EIO)}" if kind == _READ else _PROBLEMS[kind]
        raise CheckpointError(
            f"the file of experts ({names}) {what} while it was in use",
            hint="Start again once the file is whole.",
        )

    def state(self) -> StoreState:
        found = _SnStoreState()
        _kernels().sn_store_look(self.handle, found)
        counts = (found.wanted, found.held, found.late, found.read, found.read_bytes)
        return StoreState(*counts, found.waited_ns / 1e9)

    def _slot_bytes(self) -> int:
        size = _kernels().sn_store_slot_bytes
        return max(
            (size(block.structs[i]) for block in self._blocks for i in range(len(block.mlps))), default=1
        )

    def _files(self) -> set[MappedFile]:
        return {
            file for block in self._blocks for mlp in block.mlps for linear in mlp for file, _ in linear.parts
        }


def _file_structs(mlps: Sequence[FileMlp], descriptors: dict[MappedFile, int]) -> ctypes.Array[_SnFileMlp]:
    structs = (_SnFileMlp * len(mlps))()
    for struct, (gate_up, down) in zip(structs, mlps, strict=True):
        parts = [*gate_up.parts, *down.parts]
        for name, (file, rows) in zip(("gate", "up", "down")[-len(parts) :], parts, strict=True):
            rows.fd = descriptors[file]
            setattr(struct, name, rows)
    return structs


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


@cache
def _kernels() -> Any:
    kernels = library()
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    kernels.sn_store_new.restype = pointer
    kernels.sn_store_new.argtypes = (
        *(ctypes.POINTER(_SnStoredExperts), number, pointer, ctypes.c_int64),
        *(number, number, ctypes.c_double),
    )
    kernels.sn_store_free.restype = None
    kernels.sn_store_free.argtypes = (pointer,)
    kernels.sn_store_slot_bytes.restype = ctypes.c_int64
    kernels.sn_store_slot_bytes.argtypes = (ctypes.POINTER(SnMlp),)
    kernels.sn_store_failure.restype = number
    kernels.sn_store_failure.argtypes = (pointer,)
    kernels.sn_store_look.restype = None
    kernels.sn_store_look.argtypes = (pointer, ctypes.POINTER(_SnStoreState))
    return kernels
