"""Pieces of a model on this disk: a folder that fills up.

A store's folder, ``<root>`` in the piece cache:

    manifest        the encoded manifest or listing that the folder is named after
    about.json      {"name": the model's name, "digest": its digest, "n_blocks": of all of it}
    have            one bit a piece, the first piece in the highest bit of the first byte
    hashes          of a listing alone: see there
    files/NAME      a whole file
    files/NAME.part a file with holes
    users/          a locked file of each process that uses the store

``have`` is a claim: it says what is worth reading. A piece is written only when its hash was right, and
claimed only once it is on the disk; but power cuts, disks and people change files. So a piece that was not
written by this process is hashed before it is used (``checked_pieces``), and every piece before it is sent;
one that is not right is dropped, and missing from then on. Several processes may fill one store.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from io import FileIO
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock

from ...swarm.errors import CheckpointError, RemoteProtocolError
from ...swarm.runtime.state_files import replace_file
from ...swarm.types import ModelRef
from ..formats.bounded_json import JsonBounds, read_json
from ..formats.files.mapped_file import AbsentError
from .checked import CheckedPieces, file_status, is_lost
from .holder import Watcher, read_at
from .listing import parse_list
from .manifest import MAX_MANIFEST, PieceManifest
from .store_users import StoreUser

PART = ".part"
FILES = "files"
"""Folder of a store that holds what was fetched."""
_MANIFEST, _ABOUT, _HAVE = "manifest", "about.json", "have"
FLUSH_S = 1.0
"""At most this many seconds of fetching are lost when the process dies."""
_LOCK_S = 30.0
"""Seconds to wait for another process to write its claims, which takes milliseconds unless it is stopped."""
_MAX_NAME = 128
_ABOUT_BOUNDS = JsonBounds(nbytes=4096, values=16)


class PieceStore:
    """A folder of pieces, which must exist; ``create`` makes or repairs one. CheckpointError if its list of
    pieces cannot be read, or if one of its files is not a file.

    ``close`` it when done: until then it is not evicted. ``use`` False: only to look at what it claims.
    """

    def __init__(self, folder: Path, *, use: bool = True) -> None:
        self.folder = folder
        self._user: StoreUser | None = None
        if use:  # first: from then on it is not evicted
            with contextlib.suppress(OSError):  # of a read-only disk: it is not evicted there
                self._user = StoreUser(folder)
        try:
            self.manifest, self.model = _described(folder)
            _check_kinds(folder, self.manifest)
            self._checked = CheckedPieces.of(folder, self.manifest)
        except (OSError, KeyError, TypeError, CheckpointError, RemoteProtocolError) as error:
            self._release()
            raise CheckpointError(
                f"{folder} is not a usable store of weights: {error}",
                hint="Start the model by its name: what is damaged is then fetched again.",
            ) from None
        self._lock = threading.Lock()
        self._flushing = threading.Lock()  # a slow disk holds up one writer, not all
        self._watchers: list[Watcher] = []
        self._dirty = False
        self._to_be_whole: frozenset[str] = frozenset()  # files
        self._written: set[str] = set()  # files with bytes that may not be on the disk yet
        self._flushed_at = time.monotonic()
        self._held = np.zeros(self.manifest.n_pieces, dtype=bool)
        self._bad = np.zeros(self.manifest.n_pieces, dtype=bool)  # dropped: others may claim them still
        self._merge()
        if use:
            with contextlib.suppress(OSError):  # what is missing shows when it is read
                _make_files(folder, self.manifest)
            with contextlib.suppress(OSError):
                os.utime(folder)  # the least lately used store is evicted first

    @classmethod
    def create(cls, folder: Path, manifest: PieceManifest, model: ModelRef) -> PieceStore:
        """Opens the store, made if it is not there, with its small files written anew where they are damaged.
        OSError where the disk does not allow it."""
        (folder / FILES).mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            _described(folder)
        except (OSError, KeyError, TypeError, CheckpointError, RemoteProtocolError):
            replace_file(folder / _ABOUT, json.dumps(asdict(model)))
            replace_file(folder / _MANIFEST, manifest.encoded)
        _check_kinds(folder, manifest)
        _make_files(folder, manifest)
        return cls(folder)

    def held(self) -> np.ndarray:
        with self._lock:
            return self._held.copy()

    def has(self, piece: int) -> bool:
        return 0 <= piece < len(self._held) and bool(self._held[piece])

    @property
    def is_whole(self) -> bool:
        return bool(self._held.all())

    @property
    def bytes_held(self) -> int:
        sizes = np.full(self.manifest.n_pieces, self.manifest.piece_size, dtype=np.int64)
        for file in self.manifest.files:
            last = self.manifest.pieces_of(file.name)[-1]
            sizes[last] = self.manifest.size_of(last)
        return int(sizes[self.held()].sum())

    @property
    def damaged(self) -> frozenset[int]:
        """Pieces that were claimed here and that this process has found wrong; some may be right again."""
        return self._checked.found_wrong

    def missing(self, pieces: Iterable[int]) -> list[int]:
        """Those of ``pieces`` that are not here, in their order. Hashes those that were not checked; blocks.

        CheckpointError for files that may not be read.
        """
        asked = list(dict.fromkeys(pieces))
        claimed = [piece for piece in asked if self._held[piece]]
        for name, of_file in groupby(sorted(claimed), lambda piece: self.manifest.place(piece).file.name):
            self._drop(self._wrong(name, list(of_file)))
        return [piece for piece in asked if not self._held[piece]]

    def _wrong(self, name: str, pieces: list[int]) -> list[int]:
        while True:
            path = self.path(name)
            wrong = self._checked.wrong(self.manifest, name, path, pieces)
            if not wrong or self.path(name) == path:  # else it was renamed meanwhile
                return wrong

    def path(self, name: str) -> Path:
        """The whole file, or the one with holes."""
        whole = self.folder / FILES / name
        return whole if whole.exists() else whole.with_name(name + PART)

    def read(self, piece: int) -> bytes:
        """See ``PieceHolder``."""
        if not self.has(piece):
            raise CheckpointError(f"piece {piece} is not here")
        place = self.manifest.place(piece)
        try:
            with self._opened(place.file.name, "rb") as file:
                data = read_at(file, place.offset, place.length)
        except OSError as error:
            if not is_lost(error):
                raise CheckpointError(f"cannot read {self.folder}: {error.strerror or error}") from None
            data = b""
        if not self.manifest.is_right(piece, data):
            self._checked.note_wrong(piece)
            self._drop([piece])
            raise CheckpointError(f"piece {piece} of {self.model.name} was damaged on the disk")
        return data

    def add(self, piece: int, data: bytes | bytearray | memoryview) -> bool:
        """Write a piece; False, and nothing written, for bytes of another. Blocks.

        CheckpointError where the disk is full or fails; what is here stays.
        """
        if not self.manifest.accept(piece, data):
            return False
        place = self.manifest.place(piece)
        name = place.file.name
        try:
            with self._opened(name, "r+b") as file:
                with self._checked.write(name, piece, file):
                    file.seek(place.offset)
                    left = memoryview(data)
                    while left:  # a disk that is nearly full takes a part, and says so at the next write only
                        left = left[file.write(left) :]
                if name in self._to_be_whole:
                    self._checked.hash_on(name, file)
        except OSError as error:
            raise unwritable(self.folder, error) from None
        with self._lock:
            self._held[piece] = True
            self._bad[piece] = False
            self._dirty = True
            self._written.add(name)
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher(piece)
        if time.monotonic() - self._flushed_at > FLUSH_S and self._flushing.acquire(blocking=False):
            try:
                self._flush()
            finally:
                self._flushing.release()
        return True

    def expect(self, pieces: Iterable[int]) -> None:
        """These come next. Files that they make whole are hashed while they come."""
        there = self.held()
        there[list(pieces)] = True
        every = {file.name: self.manifest.pieces_of(file.name) for file in self.manifest.files}
        self._to_be_whole = frozenset(
            name for name, of_file in every.items() if there[of_file.start : of_file.stop].all()
        )

    def content(self, name: str) -> bytes | None:
        """The SHA-256 of a whole file that was hashed while it came to this process; None of any other, and
        of one that has changed since. Blocks while what is left of it is read; HashingStopped."""
        try:
            with self._opened(name, "rb") as file:
                return self._checked.content(name, file)
        except OSError:
            return None

    def forget_checks(self, name: str) -> None:
        """Something is wrong with the file: read it again before any piece of it is used."""
        self._checked.forget(name)

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        with self._lock:
            self._watchers.append(watcher)

        def end() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._watchers.remove(watcher)

        return end

    def flush(self) -> None:
        """Bring what is here to the disk, so that the next opening of the store finds it."""
        with self._flushing:
            self._flush()

    def _flush(self) -> None:
        if not self._dirty:
            return
        with self._lock:
            held, bad, written = self._held.copy(), self._bad.copy(), self._written
            self._dirty, self._written = False, set()
        try:
            for name in written:
                with contextlib.suppress(FileNotFoundError), self.path(name).open("rb") as opened:
                    _to_disk(opened.fileno())
            with FileLock(self.folder / (_HAVE + ".lock"), timeout=_LOCK_S):
                held |= self._read_have() & ~bad
                self.manifest.save(self.folder)
                replace_file(self.folder / _HAVE, np.packbits(held).tobytes())
        except OSError as error:
            with self._lock:
                self._dirty = True
                self._written |= written
            for name in written:  # after a failed sync the system may forget what it was to write
                self._checked.forget(name)
            if not written:
                return  # of a disk that is only read: a claim that stays is found out the next time, too
            raise unwritable(self.folder, error) from None
        with self._lock:
            self._held |= held & ~self._bad
            self._bad &= ~bad  # a process that claims them from here on has written them
        self.finish_files()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        """Idempotent."""
        try:
            self.flush()
        finally:
            self._release()

    def _release(self) -> None:
        if self._user is not None:
            self._user.release()

    def __enter__(self) -> PieceStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def require(self, name: str, start: int, length: int) -> None:
        """AbsentError unless these bytes of a file are here and right. Blocks."""
        pieces = self.manifest.pieces_of(name, start, length)
        if not self._held[pieces.start : pieces.stop].all():
            self._merge()  # another process, or another opening of this store, may have brought them
        if self.missing(pieces):
            raise AbsentError(name, start, length, damaged=not self.damaged.isdisjoint(pieces))

    def _merge(self) -> None:
        held = self._read_have()
        with self._lock:
            self._held |= held

    def _read_have(self) -> np.ndarray:
        n = self.manifest.n_pieces
        self.manifest.load(self.folder)
        try:
            file_status(have := self.folder / _HAVE)
            bits = np.frombuffer(have.read_bytes(), dtype=np.uint8)
        except OSError:  # as after a crash: what is there is fetched again
            return np.zeros(n, dtype=bool)
        if len(bits) != -(-n // 8):
            return np.zeros(n, dtype=bool)
        return np.unpackbits(bits, count=n).astype(bool)

    def _drop(self, pieces: list[int]) -> None:
        """The pieces are not here, even if they were claimed."""
        with self._lock:
            lost = [piece for piece in pieces if self._held[piece]]
            self._held[lost] = False
            self._bad[lost] = True
            self._dirty = self._dirty or bool(lost)
        for name in {self.manifest.place(piece).file.name for piece in lost}:
            whole = self.folder / FILES / name
            with contextlib.suppress(OSError):
                whole.replace(whole.with_name(name + PART))

    def finish_files(self) -> None:
        """Take the ``.part`` from files of which every piece is on the disk, and right."""
        for file in self.manifest.files:
            pieces = self.manifest.pieces_of(file.name)
            part = self.folder / FILES / (file.name + PART)
            if self._held[pieces.start : pieces.stop].all() and part.exists() and not self.missing(pieces):
                with contextlib.suppress(OSError):
                    part.replace(self.folder / FILES / file.name)

    def _opened(self, name: str, mode: Literal["rb", "r+b"]) -> FileIO:
        for _ in range(2):  # another process may rename it at this moment
            with contextlib.suppress(FileNotFoundError):
                return self._opened_once(name, mode)
        with contextlib.suppress(FileNotFoundError):  # then the folder is gone as well
            _make_files(self.folder, self.manifest)
        return self._opened_once(name, mode)

    def _opened_once(self, name: str, mode: Literal["rb", "r+b"]) -> FileIO:
        file_status(path := self.path(name))
        return path.open(mode, buffering=0)


class FilePresence:
    """``mapped_file.PresentBytes`` of one file of a store. ``head``: how many bytes its header has at most,
    where the manifest does not say it."""

    def __init__(self, store: PieceStore, name: str, head: int = 0) -> None:
        self._store = store
        self._name = name
        file = store.manifest.file(name)
        self._size = min(head, file.size) or file.head
        self._head = 0

    def require(self, start: int, length: int) -> None:
        self._store.require(self._name, start, length)

    def begins_with(self, first: bytes) -> bool:
        """AbsentError where that is not there."""
        self.require(0, len(first))
        with self._store.path(self._name).open("rb") as file:
            return file.read(len(first)) == first

    def prefix(self) -> int:
        """The file's head. AbsentError where that is not all there."""
        if not self._head:
            self.require(0, self._size)
            self._head = self._size
        return self._head


def is_store(path: Path) -> bool:
    return (path / _MANIFEST).is_file() and (path / FILES).is_dir()


def _described(folder: Path) -> tuple[PieceManifest, ModelRef]:
    """The manifest, and the model as it was asked for. OSError, KeyError, TypeError, CheckpointError or
    RemoteProtocolError where they are not to be read."""
    for name in (_MANIFEST, _ABOUT):
        file_status(folder / name)
    with (folder / _MANIFEST).open("rb") as file:
        manifest = parse_list(file.read(MAX_MANIFEST + 1), folder.name)
    about = read_json(folder / _ABOUT, _ABOUT_BOUNDS)
    name, digest, n_blocks = about["name"], about["digest"], about["n_blocks"]
    if (type(name), type(digest), type(n_blocks)) != (str, str, int):
        raise CheckpointError(f"{folder / _ABOUT} names no model")
    return manifest, ModelRef(name[:_MAX_NAME], digest, n_blocks)


def _check_kinds(folder: Path, manifest: PieceManifest) -> None:
    """OSError if an entry with a file's name is not a file: it can be neither read nor repaired."""
    for file in manifest.files:
        for name in (file.name, file.name + PART):
            with contextlib.suppress(FileNotFoundError):
                file_status(folder / FILES / name)


def _make_files(folder: Path, manifest: PieceManifest) -> None:
    """Give every file its size, with a hole where there is none of it. OSError."""
    for file in manifest.files:
        whole = folder / FILES / file.name
        path = whole if whole.exists() else whole.with_name(file.name + PART)
        if not path.exists() or file_status(path).st_size != file.size:
            with path.open("ab") as opened:
                opened.truncate(file.size)


def _to_disk(handle: int) -> None:
    """Bring the bytes of a file and its length to the disk; its time of change may wait."""
    getattr(os, "fdatasync", os.fsync)(handle)


def unwritable(folder: Path, error: OSError) -> CheckpointError:
    hint = "Set SWARM_NODE_HOME to a folder that this user can write."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "Free some space, or choose a smaller --cache-size; what was fetched stays."
    elif error.errno == errno.EIO:
        hint = "The disk fails: set SWARM_NODE_HOME to a folder on another one."
    return CheckpointError(f"cannot write {folder}: {error.strerror or error}", hint=hint)
