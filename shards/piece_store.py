"""Pieces of a model on this disk: whole files, or a folder that fills up.

A store's folder, ``<root>`` in the piece cache:

    manifest        the encoded manifest that the folder is named after
    about.json      {"name": the model's name, "digest": its digest}
    have            one bit a piece, the first piece in the highest bit of the first byte
    files/NAME      a whole file
    files/NAME.part a file with holes, which only ``have`` tells from zeros
    users/          a locked file of each process that uses the store

A piece is written only when its hash was right, and counts in ``have`` only once it is on the disk. Several
processes may fill one store.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
from filelock import FileLock, Timeout

from ..swarm.errors import CheckpointError, RemoteProtocolError
from .bounded_json import JsonBounds, read_json
from .mapped_file import AbsentError
from .piece_manifest import MAX_MANIFEST, PieceManifest

PART = ".part"
_MANIFEST, _ABOUT, _HAVE, _FILES, _USERS = "manifest", "about.json", "have", "files", "users"
FLUSH_S = 1.0
"""At most so much fetching is lost when the process dies."""
_MAX_NAME = 128
_ABOUT_BOUNDS = JsonBounds(nbytes=4096, values=16)

Watcher = Callable[[int], None]


class PieceHolder(Protocol):
    """Pieces that can be served. Methods may be called from any thread; ``read`` blocks."""

    @property
    def manifest(self) -> PieceManifest: ...

    def held(self) -> np.ndarray:
        """(pieces,) bool."""

    def has(self, piece: int) -> bool: ...

    def read(self, piece: int) -> bytes:
        """CheckpointError where it is not here, or its file is not what it was."""

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """``watcher(piece)`` for each piece that comes, in the thread that adds it; returns how to end it."""


class WholeFiles:
    """A model's files where they lie, whole, under the names of its manifest."""

    def __init__(self, manifest: PieceManifest, files: dict[str, Path]) -> None:
        self.manifest = manifest
        self._files = files
        self._held = np.ones(manifest.n_pieces, dtype=bool)
        self._state = {name: _state(path) for name, path in files.items()}

    def held(self) -> np.ndarray:
        return self._held

    def has(self, piece: int) -> bool:
        return 0 <= piece < len(self._held)

    def read(self, piece: int) -> bytes:
        place = self.manifest.place(piece)
        path = self._files[place.file.name]
        if _state(path) != self._state[place.file.name]:
            raise CheckpointError(f"{path} is not the file any more that was hashed")
        return _read_at(path, place.offset, place.length)

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        return lambda: None


class PieceStore:
    """A folder of pieces, which must be there already; ``create`` makes one. CheckpointError otherwise.

    ``close`` it when done: until then it is not evicted. ``use`` False: only to look at it.
    """

    def __init__(self, folder: Path, *, use: bool = True) -> None:
        self.folder = folder
        try:
            with (folder / _MANIFEST).open("rb") as file:
                self.manifest = PieceManifest.parse(file.read(MAX_MANIFEST + 1), folder.name)
            about = read_json(folder / _ABOUT, _ABOUT_BOUNDS)
            self.name, self.digest = str(about["name"])[:_MAX_NAME], str(about["digest"])
        except (OSError, KeyError, TypeError, CheckpointError, RemoteProtocolError) as error:
            raise CheckpointError(
                f"{folder} is no usable store of weights: {error}", hint="Delete that folder."
            ) from None
        self._lock = threading.Lock()
        self._flushing = threading.Lock()  # a slow disk holds up one writer, not all
        self._watchers: list[Watcher] = []
        self._dirty = False
        self._flushed_at = time.monotonic()
        self._user = _Marker(folder / _USERS) if use else None
        self._held = np.zeros(self.manifest.n_pieces, dtype=bool)
        self._merge()
        if use:
            with contextlib.suppress(OSError):
                os.utime(folder)  # the least lately used store is evicted first

    @classmethod
    def create(cls, folder: Path, manifest: PieceManifest, name: str, digest: str) -> PieceStore:
        """Opens the store, made if it is not there. CheckpointError where the disk does not allow it."""
        try:
            (folder / _FILES).mkdir(parents=True, exist_ok=True, mode=0o700)
            if not (folder / _MANIFEST).is_file():
                _replace(folder / _ABOUT, json.dumps({"name": name, "digest": digest}).encode())
                _replace(folder / _MANIFEST, manifest.encoded)
            for file in manifest.files:
                whole, part = folder / _FILES / file.name, folder / _FILES / (file.name + PART)
                if not whole.exists() and not part.exists():
                    with part.open("ab") as opened:
                        opened.truncate(file.size)
        except OSError as error:
            raise CheckpointError(f"cannot write {folder}: {error.strerror or error}") from None
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

    def missing(self, pieces: Iterable[int]) -> list[int]:
        """Those of ``pieces`` that are not here, in their order."""
        return [piece for piece in dict.fromkeys(pieces) if not self._held[piece]]

    def path(self, name: str) -> Path:
        """The whole file, or the one with holes."""
        whole = self.folder / _FILES / name
        return whole if whole.exists() else whole.with_name(name + PART)

    def read(self, piece: int) -> bytes:
        if not self.has(piece):
            raise CheckpointError(f"piece {piece} is not here")
        place = self.manifest.place(piece)
        return _read_at(self.path(place.file.name), place.offset, place.length)

    def add(self, piece: int, data: bytes | bytearray | memoryview) -> bool:
        """Write a piece; False, and nothing written, for bytes that are not its. Blocks.

        CheckpointError where the disk is full or fails.
        """
        if not self.manifest.is_right(piece, data):
            return False
        place = self.manifest.place(piece)
        try:
            with self._opened(place.file.name) as file:
                file.seek(place.offset)
                file.write(data)
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self.folder}: {error.strerror or error}",
                hint="Free some space, or choose a smaller --cache-size.",
            ) from None
        with self._lock:
            self._held[piece] = True
            self._dirty = True
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher(piece)
        if time.monotonic() - self._flushed_at > FLUSH_S and self._flushing.acquire(blocking=False):
            try:
                self._flush()
            finally:
                self._flushing.release()
        return True

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        with self._lock:
            self._watchers.append(watcher)

        def end() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._watchers.remove(watcher)

        return end

    def flush(self) -> None:
        """What is here is on the disk, and known to whoever opens the store next."""
        with self._flushing:
            self._flush()

    def _flush(self) -> None:
        if not self._dirty:
            return
        with FileLock(self.folder / (_HAVE + ".lock")):
            with self._lock:
                held = self._held.copy()
                self._dirty = False
            try:
                for file in self.manifest.files:
                    part = self.folder / _FILES / (file.name + PART)
                    with contextlib.suppress(FileNotFoundError), part.open("rb") as opened:
                        os.fsync(opened.fileno())
                held |= self._read_have()
                _replace(self.folder / _HAVE, np.packbits(held).tobytes())
                self._finish_files(held)
            except OSError as error:
                self._dirty = True
                raise CheckpointError(f"cannot write {self.folder}: {error.strerror or error}") from None
        self._flushed_at = time.monotonic()
        with self._lock:
            self._held |= held

    def close(self) -> None:
        """May be called again."""
        try:
            self.flush()
        finally:
            if self._user is not None:
                self._user.release()

    def __enter__(self) -> PieceStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def presence(self, name: str) -> FilePresence | None:
        """None for a whole file."""
        return FilePresence(self, name) if self.path(name).name.endswith(PART) else None

    def require(self, name: str, start: int, length: int) -> None:
        """AbsentError unless these bytes of a file are here."""
        pieces = self.manifest.pieces_of(name, start, length)
        if not self._held[pieces.start : pieces.stop].all():
            self._merge()  # another process, or another opening of this store, may have brought them
            if not self._held[pieces.start : pieces.stop].all():
                raise AbsentError(name, start, length)

    def prefix(self, name: str) -> int:
        pieces = self.manifest.pieces_of(name)
        held = self._held[pieces.start : pieces.stop]
        if held.all():
            return self.manifest.place(pieces[-1]).file.size
        return int(np.argmin(held)) * self.manifest.piece_size

    def _merge(self) -> None:
        held = self._read_have()
        with self._lock:
            self._held |= held

    def _read_have(self) -> np.ndarray:
        n = self.manifest.n_pieces
        try:
            bits = np.frombuffer((self.folder / _HAVE).read_bytes(), dtype=np.uint8)
        except FileNotFoundError:
            return np.zeros(n, dtype=bool)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.folder}: {error.strerror or error}") from None
        if len(bits) != -(-n // 8):
            return np.zeros(n, dtype=bool)
        return np.unpackbits(bits, count=n).astype(bool)

    def _finish_files(self, held: np.ndarray) -> None:
        """Take the ``.part`` from files of which every piece is on the disk."""
        for file in self.manifest.files:
            pieces = self.manifest.pieces_of(file.name)
            part = self.folder / _FILES / (file.name + PART)
            if held[pieces.start : pieces.stop].all():
                with contextlib.suppress(FileNotFoundError):
                    part.replace(self.folder / _FILES / file.name)

    def _opened(self, name: str) -> contextlib.AbstractContextManager:
        try:
            return self.path(name).open("r+b", buffering=0)
        except FileNotFoundError:  # another process has just completed it
            return self.path(name).open("r+b", buffering=0)


class FilePresence:
    """``mapped_file.Presence`` of one file of a store."""

    def __init__(self, store: PieceStore, name: str) -> None:
        self._store = store
        self._name = name

    def require(self, start: int, length: int) -> None:
        self._store.require(self._name, start, length)

    def prefix(self) -> int:
        return self._store.prefix(self._name)


def is_store(path: Path) -> bool:
    return (path / _MANIFEST).is_file() and (path / _FILES).is_dir()


def is_used(folder: Path) -> bool:
    """Whether some process, this one too, has the store open. Forgets those that have died."""
    for marker in (folder / _USERS).glob("*.lock"):
        lock = FileLock(marker)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        marker.unlink(missing_ok=True)
    return False


class _Marker:
    """A locked file of this opening: it says that the store is in use, and no longer than it is."""

    _count = 0

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True, mode=0o700)
        _Marker._count += 1
        self._path = folder / f"{os.getpid()}-{time.monotonic_ns()}-{_Marker._count}.lock"
        self._lock = FileLock(self._path, thread_local=False)
        self._lock.acquire(timeout=0)

    def release(self) -> None:
        if self._lock.is_locked:
            self._lock.release()
            self._path.unlink(missing_ok=True)


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    return status.st_size, status.st_mtime_ns


def _read_at(path: Path, offset: int, length: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            data = bytearray()
            while len(data) < length and (more := file.read(length - len(data))):
                data += more
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    if len(data) != length:
        raise CheckpointError(f"{path} is shorter than it was")
    return bytes(data)


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
