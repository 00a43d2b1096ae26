"""Which pieces of a folder's files were read, and found to be what the manifest says.

A disk claims more than it holds after a power cut, a bad sector, a copy that was cut short. So nothing of it
is used before it was hashed: once in a process, for all of its users of the folder. A check counts for the
file as it was then; one that others have changed since is read again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

import numpy as np

from ...swarm.errors import CheckpointError
from ...swarm.fairness.recent import RecentMap
from .file_hashes import check_stopped, fill
from .manifest import PieceManifest
from .running_hash import RunningHash

_THREADS = min(4, os.cpu_count() or 1)
"""Hashing is done beside reading; four threads hash 6 GB/s, more than most disks give."""
_AT_ONCE = 1 << 20
"""About this many bytes that lie together are hashed at once for a file's SHA-256: with less, threads wait
for the interpreter's lock more often than for the processor."""
_FEW = 8
"""This many pieces are hashed in the time that it takes to start a thread."""
_LOST = (errno.ENOENT, errno.EIO, errno.ENODATA, errno.EISDIR, errno.ENOTDIR, errno.ENXIO, errno.ESTALE)
"""The errors of reading a damaged file or disk. Others, such as missing rights, tell nothing of the bytes."""

_Identity = tuple[int, int, int, int]


class CheckedPieces:
    """The checks of one folder. Methods may be called from any thread."""

    def __init__(self, manifest: PieceManifest) -> None:
        self._manifest = manifest
        self._right = np.zeros(manifest.n_pieces, dtype=bool)
        self._found_wrong: set[int] = set()
        self._identities: dict[str, _Identity] = {}
        self._changes: Counter[str] = Counter()
        self._running: dict[str, RunningHash] = {}  # of files as they are now
        self._lock = threading.Lock()  # of what is above
        self._writing: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # by the file's name

    @classmethod
    def of(cls, folder: Path, manifest: PieceManifest) -> CheckedPieces:
        """The one object for this folder that all of this process share. OSError."""
        status = folder.stat()
        key = (status.st_dev, status.st_ino)
        with _knowing:
            found = _known.get(key)
            if found is None or found._manifest != manifest:
                found = cls(manifest)
            _known[key] = found
            return found

    def wrong(self, manifest: PieceManifest, name: str, path: Path, pieces: Iterable[int]) -> list[int]:
        """Those of a file's ``pieces`` whose bytes are missing or wrong by ``manifest``. Reads those that
        were not checked yet; blocks. CheckpointError for a file that may not be read."""
        pieces = list(pieces)
        try:
            change = self._notice(name, _identity(file_status(path)))
        except OSError as error:
            _raise_unless_lost(path, error)
            return pieces
        with self._lock:
            todo = [piece for piece in pieces if not self._right[piece]]
        if not todo:
            return []
        wrong = _wrong(manifest, path, todo)
        with self._lock:
            self._found_wrong.update(wrong)
            if self._changes[name] == change:  # else some of it was read before the change
                self._right[todo] = True
                self._right[wrong] = False
        return wrong

    @contextlib.contextmanager
    def write(self, name: str, piece: int, file: FileIO) -> Iterator[None]:
        """Use it around writing a right piece into an open file, so that the change counts as ours."""
        with self._writing[name]:
            self._notice(name, _identity(os.fstat(file.fileno())))
            done = False
            try:
                yield
                done = True
            finally:
                with self._lock:
                    if (running := self._running.get(name)) is not None and running.has_begun(piece):
                        del self._running[name]
                    self._identities[name] = _identity(os.fstat(file.fileno()))
                    self._right[piece] = done
                    if done:
                        self._found_wrong.discard(piece)

    def hash_on(self, name: str, file: FileIO) -> None:
        """Go on with the SHA-256 of a file of which some has just come, where enough of it is there; not
        while another thread is at it. Blocks."""
        with self._lock:
            running = self._running.setdefault(name, RunningHash(self._manifest, name))
        if running.lock.acquire(blocking=False):
            try:
                pieces = self._next(running)
                if pieces and len(pieces) in (self._at_once, len(running.left)):
                    self._take(name, file, running, pieces)
            finally:
                running.lock.release()

    def content(self, name: str, file: FileIO) -> bytes | None:
        """The SHA-256 of a file for which ``hash_on`` was called; reads what is left. Blocks. None where some
        of it is not here, was not checked, or has changed since it was hashed. HashingStopped."""
        if (running := self._running.get(name)) is None:
            return None
        with running.lock:
            while (pieces := self._next(running)) and self._take(name, file, running, pieces):
                check_stopped()
            with self._writing[name]:
                is_current = self._is_current(name, file, running)
            return running.digest() if is_current and not running.left else None

    @property
    def _at_once(self) -> int:
        return max(1, _AT_ONCE // self._manifest.piece_size)

    def _next(self, running: RunningHash) -> range:
        """The pieces to hash next: those that are right, up to the first that is not."""
        pieces = running.left[: self._at_once]
        right = self._right[pieces.start : pieces.stop]
        return pieces if right.all() else pieces[: int(right.argmin())]

    def _take(self, name: str, file: FileIO, running: RunningHash, pieces: range) -> bool:
        """Hash ``pieces``; False where they are not right, or were not when they were read."""
        with contextlib.suppress(OSError):  # of a disk that fails: who needs the bytes is told
            with self._writing[name]:  # so that a write of ours is not taken for a change by others
                if not (
                    self._is_current(name, file, running) and self._right[pieces.start : pieces.stop].all()
                ):
                    return False
                running.begin(pieces)
            data = running.read(pieces, file)
            with self._writing[name]:
                if not self._is_current(name, file, running):
                    return False
            running.take(pieces, data)
            return True
        return False

    def _is_current(self, name: str, file: FileIO, running: RunningHash) -> bool:
        """Whether what was hashed is still what the file holds. To be called while nobody of ours writes."""
        self._notice(name, _identity(os.fstat(file.fileno())))
        return self._running.get(name) is running

    @property
    def found_wrong(self) -> frozenset[int]:
        """Pieces that were wrong when they were read, and have not been written since."""
        with self._lock:
            return frozenset(self._found_wrong)

    def note_wrong(self, piece: int) -> None:
        """Note that a piece was read and its bytes were wrong."""
        with self._lock:
            self._right[piece] = False
            self._found_wrong.add(piece)

    def forget(self, name: str) -> None:
        """Forget everything about the file."""
        with self._lock:
            self._identities.pop(name, None)

    def _notice(self, name: str, identity: _Identity) -> int:
        """The file's identity; how often others have changed it."""
        with self._lock:
            if self._identities.get(name) != identity:
                self._identities[name] = identity
                self._changes[name] += 1
                every = self._manifest.pieces_of(name)
                self._right[every.start : every.stop] = False
                self._running.pop(name, None)
            return self._changes[name]


_known: RecentMap[tuple[int, int], CheckedPieces] = RecentMap(64)  # by the folder's inode
_knowing = threading.Lock()


def file_status(path: Path) -> os.stat_result:
    """OSError also for an entry that is not a file of the folder's own: opening a named pipe waits, a device
    may have no end, and writing through a link overwrites a file somewhere else."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EISDIR, "is not a file", str(path))
    return status


def is_lost(error: OSError) -> bool:
    """True if the bytes that could not be read are gone or damaged; otherwise they may be there."""
    return error.errno in _LOST


def _identity(status: os.stat_result) -> _Identity:
    """A value that changes when the file is written into or replaced."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _wrong(manifest: PieceManifest, path: Path, pieces: Sequence[int]) -> list[int]:
    """The wrong pieces. Many are hashed in several threads."""
    if len(pieces) <= _FEW or _THREADS == 1:
        return _wrong_in_turn(manifest, path, pieces)
    step = max(_FEW, -(-len(pieces) // (4 * _THREADS)))
    parts = [pieces[start : start + step] for start in range(0, len(pieces), step)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="checking-weights") as threads:
        found = threads.map(lambda part: _wrong_in_turn(manifest, path, part), parts)
        return [piece for part in found for piece in part]


def _wrong_in_turn(manifest: PieceManifest, path: Path, pieces: Sequence[int]) -> list[int]:
    wrong = []
    buffer = memoryview(bytearray(manifest.piece_size))
    try:
        with path.open("rb", buffering=0) as file:
            for piece in pieces:
                place = manifest.place(piece)
                data = buffer[: place.length]
                try:
                    file.seek(place.offset)
                    n = fill(file, data)
                except OSError as error:
                    _raise_unless_lost(path, error)
                    n = 0
                if n < place.length or not manifest.is_right(piece, data):
                    wrong.append(piece)
    except OSError as error:
        _raise_unless_lost(path, error)
        return list(pieces)
    return wrong


def _raise_unless_lost(path: Path, error: OSError) -> None:
    if not is_lost(error):
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
