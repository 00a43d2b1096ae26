"""Hashes of files on this disk: read once, by several threads, and remembered.

What is remembered belongs to a file as it was: its path, device and inode, size, times of change. A file that
differs in any of them is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgpack

from ...swarm.errors import CheckpointError
from ...swarm.runtime.state_files import replace_file, state_folder
from ..formats.bounded_json import read_bytes

Progress = Callable[[int, int, str], None]
"""``progress(done_bytes, total_bytes, label)``."""
HASHING = "Hashing the model's files"
"""The label for ``progress``."""
THREADS = 4
"""At most this many threads hash: more do not make a disk faster."""
SETTLED_S = 2.0
"""A file that changed less than this many seconds ago is not remembered: another change may leave its times
as they are (FAT's have two seconds)."""
_TICK_S = 0.1
"""Seconds between looks whether to stop, and between reports of progress."""
_READ = 4 << 20
"""About this many bytes are read at once."""
_BUFFERS = 3
"""A file is read this many times ``_READ`` ahead of the threads that hash its pieces."""
_REMEMBERED = 4096
"""The hashes of this many files are kept: the largest models have some hundreds."""
_MAX_RECORD = 8 << 20
_FORMAT = "swarm-node hashes 1"


class HashingStopped(Exception):  # noqa: N818 - not an error: it was asked for
    """Hashing ended because ``stop`` was set."""


@dataclass(frozen=True, slots=True)
class FileHashes:
    """``sha256``: of the whole file. ``pieces``: of each piece of ``piece_size`` bytes, 32 bytes for each;
    none were wanted where that is 0."""

    size: int
    sha256: bytes
    piece_size: int
    pieces: bytes


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells whether a file is still the one that was hashed."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        try:
            status = path.stat()
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
        times = (status.st_mtime_ns, status.st_ctime_ns)
        return cls(str(path.resolve()), status.st_dev, status.st_ino, status.st_size, *times)

    def is_overwritten(self) -> bool:
        """Whether this very file was written into since. A file that was moved, removed or replaced stays as
        it was for those that have it open."""
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        if (status.st_dev, status.st_ino) != (self.device, self.inode):
            return False
        return (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns)


@contextmanager
def hashing_watched(progress: Progress | None = None) -> Iterator[None]:
    """Everything that is hashed inside, in this task and in threads that it starts with
    ``asyncio.to_thread``, tells ``progress``. It ends, with HashingStopped in its thread, when an exception
    leaves this block, such as CancelledError, or after ``stop_hashing``."""
    outer, _ = _WATCH.get()
    token = _WATCH.set((progress or outer, threading.Event()))
    try:
        yield
    except BaseException:
        stop_hashing()
        raise
    finally:
        _WATCH.reset(token)


def stop_hashing() -> None:
    """End the hashing. For code that must wait for a thread before an exception may leave the block."""
    _, stop = _WATCH.get()
    if stop is not None:
        stop.set()


def check_stopped(wait_s: float = 0.0) -> None:
    """HashingStopped if ``stop_hashing`` was called, or is within ``wait_s`` seconds. For other long work of
    the same thread, too."""
    _, stop = _WATCH.get()
    if stop is None:
        time.sleep(wait_s)
    elif stop.wait(wait_s):
        raise HashingStopped


_WATCH: ContextVar[tuple[Progress | None, threading.Event | None]] = ContextVar("watch", default=(None, None))


def hash_files(
    files: Mapping[str, Path],
    piece_size: int = 0,
    *,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    remembered: Path | None = None,
) -> dict[str, FileHashes]:
    """The hashes by the same keys, in their order. Blocks while files are read; none is opened if all is
    remembered.

    ``piece_size``: bytes of the pieces to hash in the same reading; 0 for none. ``remembered``: the folder
    for results, by default one in the state folder. CheckpointError for files that cannot be read or change
    meanwhile; HashingStopped.
    """
    watching, stopped = _WATCH.get()
    progress, stop = progress or watching, stop or stopped
    folder = remembered or state_folder() / "hashes"
    states = {key: FileState.of(path) for key, path in files.items()}
    found: dict[str, FileHashes] = {}
    for key, state in states.items():
        known = _recall(folder, state)
        if known is not None and piece_size in (0, known.piece_size):
            found[key] = known
    unknown = {key: path for key, path in files.items() if key not in found}
    if unknown:
        fresh = _Reading(unknown, piece_size, states, progress, stop).hashes()
        for key, path in unknown.items():
            if FileState.of(path) != states[key]:
                raise CheckpointError(
                    f"{path} changed while it was hashed", hint="Start again when it is written."
                )
        _remember(folder, {states[key]: hashes for key, hashes in fresh.items()})
        found |= fresh
    return {key: found[key] for key in files}


class _Reading:
    """One reading of all these files, side by side. A SHA-256 takes a file in order, so one thread reads each
    file for it; what it has read, other threads hash as pieces meanwhile."""

    def __init__(
        self,
        files: Mapping[str, Path],
        piece_size: int,
        states: Mapping[str, FileState],
        progress: Progress | None,
        stop: threading.Event | None,
    ) -> None:
        self._files = files
        self._piece_size = piece_size
        self._step = max(piece_size, _READ - _READ % piece_size if piece_size else _READ)
        self._sizes = {key: states[key].size for key in files}
        self._progress = progress
        self._stop = stop
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._done = 0

    def hashes(self) -> dict[str, FileHashes]:
        total = sum(self._sizes.values())
        self._tell(total)
        threads = min(THREADS, os.cpu_count() or 1)
        readers = ThreadPoolExecutor(threads, "hashing")
        self._pool = ThreadPoolExecutor(threads, "hashing-pieces")  # its threads wait for nobody
        try:
            largest_first = sorted(self._files, key=lambda key: -self._sizes[key])
            found = {key: readers.submit(self._read, key) for key in largest_first}
            self._wait(set(found.values()), total)
        finally:
            self._ended.set()  # what still reads, because something went wrong, ends with its next read
            readers.shutdown(cancel_futures=True)
            self._pool.shutdown()
        return {key: found[key].result() for key in self._files}

    def _wait(self, left: set[Future[FileHashes]], total: int) -> None:
        while left:
            if self._stop is not None and self._stop.is_set():
                raise HashingStopped
            ended, left = wait(left, _TICK_S, FIRST_EXCEPTION)
            for each in ended:
                each.result()
            self._tell(total)

    def _tell(self, total: int) -> None:
        if self._progress is not None:
            self._progress(self._done, total, HASHING)

    def _read(self, key: str) -> FileHashes:
        path, size = self._files[key], self._sizes[key]
        buffers = [memoryview(bytearray(min(self._step, size))) for _ in range(_BUFFERS)]
        whole, pieces = hashlib.sha256(), list[Future[bytes]]()
        try:
            with path.open("rb", buffering=0) as file:
                for number, offset in enumerate(range(0, size, self._step)):  # no further, should it grow
                    if self._piece_size and number >= _BUFFERS:
                        pieces[number - _BUFFERS].result()  # until then its buffer is in use
                    buffer = buffers[number % _BUFFERS]
                    data = buffer[: fill(file, buffer[: min(self._step, size - offset)])]
                    if self._ended.is_set():
                        raise HashingStopped
                    if self._piece_size:
                        pieces.append(self._pool.submit(_piece_hashes, data, self._piece_size))
                    whole.update(data)
                    with self._lock:
                        self._done += len(data)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
        hashes = b"".join(each.result() for each in pieces)
        return FileHashes(size, whole.digest(), self._piece_size, hashes)


def _piece_hashes(data: memoryview, piece_size: int) -> bytes:
    pieces = (data[start : start + piece_size] for start in range(0, len(data), piece_size))
    return b"".join(hashlib.sha256(piece).digest() for piece in pieces)


def fill(file: BinaryIO, buffer: memoryview) -> int:
    """Read until the buffer is full or the file ends; a single read may give less."""
    n = 0
    while n < len(buffer) and (more := file.readinto(buffer[n:])):  # type: ignore[attr-defined]
        n += more
    return n


def _record(folder: Path, state: FileState) -> Path:
    key = json.dumps([state.path, state.device, state.inode, state.size, state.mtime_ns, state.ctime_ns])
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()}.hashes"


def _recall(folder: Path, state: FileState) -> FileHashes | None:
    """None also for a damaged record, which shows by its own SHA-256 at its start. A process that can write
    the folder can forge it, as all of our state."""
    record = _record(folder, state)
    try:
        data = read_bytes(record, _MAX_RECORD)
        if data[:32] != hashlib.sha256(data[32:]).digest():
            return None
        form, sha256, piece_size, pieces = msgpack.unpackb(data[32:])
        n_pieces = -(-state.size // piece_size) if piece_size else 0
        if form != _FORMAT or len(sha256) != 32 or len(pieces) != 32 * n_pieces:
            return None
        os.utime(record)
    except (OSError, ValueError, TypeError, CheckpointError):
        return None
    return FileHashes(state.size, sha256, piece_size, pieces)


def _remember(folder: Path, hashes: Mapping[FileState, FileHashes]) -> None:
    now = time.time_ns()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for state, each in hashes.items():
            if 0 <= now - max(state.mtime_ns, state.ctime_ns) < SETTLED_S * 1e9:
                continue
            data = msgpack.packb([_FORMAT, each.sha256, each.piece_size, each.pieces])
            replace_file(_record(folder, state), hashlib.sha256(data).digest() + data)
        records = sorted(folder.glob("*.hashes"), key=lambda path: path.stat().st_mtime_ns)
        for old in records[:-_REMEMBERED]:
            old.unlink(missing_ok=True)
    except OSError:
        pass  # they are hashed again next time
