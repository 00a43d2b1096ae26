"""The folder of fetched models: one piece store a root, the least lately used evicted first."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ...swarm.errors import CheckpointError, UsageError
from ...swarm.runtime.state_files import set_aside
from ...swarm.types import ModelRef
from .manifest import PieceManifest
from .store import PieceStore, is_store, unwritable
from .store_users import is_used

logger = logging.getLogger(__name__)

DEFAULT_CACHE_BYTES = 200_000_000_000
"""Bytes of the cache by default, as in ``--cache-size``."""
SPARE_DISK_BYTES = 1_000_000_000
"""This many bytes stay free on the disk, even if the limit allows more: a full disk breaks more than this
program."""
_HEX = frozenset("0123456789abcdef")
_BROKEN = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ENOTEMPTY, errno.ELOOP)
"""The errors of a folder with an entry of the wrong kind, or with bad sectors."""


@dataclass(frozen=True, slots=True)
class CachedModel:
    """``path``: what ``open_checkpoint`` takes. ``whole``: every piece is here. ``nbytes``: of those here."""

    name: str
    digest: str
    root: str
    path: Path
    whole: bool
    nbytes: int


class PieceCache:
    """``max_bytes``: of all stores together; a store that a process uses is never evicted."""

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        if max_bytes < 1:
            raise UsageError(
                f"a cache of {max_bytes} bytes holds nothing", hint="Choose a larger --cache-size."
            )
        self.folder = folder
        self.max_bytes = max_bytes

    def open(self, manifest: PieceManifest, model: ModelRef) -> PieceStore:
        """The model's store, made if it is not there; close it. CheckpointError, blocks.

        Small files of it that are damaged are written anew. A folder that cannot be used even so is set
        aside, to be evicted before any other, and another one takes its place.
        """
        folder = self.folder / manifest.root
        with self._locked():
            try:
                return PieceStore.create(folder, manifest, model)
            except OSError as error:
                if error.errno not in _BROKEN or set_aside(folder) is None:
                    raise unwritable(folder, error) from None
                logger.warning("event=weights_set_aside folder=%s error=%r", folder, str(error))
            try:
                return PieceStore.create(folder, manifest, model)
            except OSError as error:
                raise unwritable(folder, error) from None

    def find(self, root: str) -> PieceStore | None:
        """The store of this root, if there is one that can be opened; close it."""
        if not _is_root(root) or not is_store(self.folder / root):
            return None
        with self._locked():
            try:
                return PieceStore(self.folder / root)
            except CheckpointError:
                return None

    def models(self) -> list[CachedModel]:
        """The models by name; of one name the most recently used first."""
        found = []
        for folder in filter(is_store, self._by_age()):
            try:
                with PieceStore(folder, use=False) as store:
                    found.append(
                        CachedModel(
                            store.model.name,
                            store.model.digest,
                            folder.name,
                            folder,
                            store.is_whole,
                            store.bytes_held,
                        )
                    )
            except CheckpointError:
                continue  # damaged: ``open`` repairs it once a peer has told its list of pieces
        found.reverse()
        return sorted(found, key=lambda model: model.name)

    def discard(self, folder: Path) -> None:
        """Remove a store that holds what it should not, unless a process uses it. Blocks."""
        with self._locked():
            _evict(folder)

    def make_room(self, store: PieceStore, more_bytes: int) -> None:
        """Evict other stores until ``more_bytes`` fit beside what ``store`` holds. Blocks.

        UsageError if they cannot fit, because of the limit or of the disk.
        """
        with self._locked():
            stores = [folder for folder in self._by_age() if folder != store.folder]
            sizes = {folder: _disk_bytes(folder) for folder in stores}
            held = store.bytes_held + sum(sizes.values())
            free = shutil.disk_usage(self.folder).free - SPARE_DISK_BYTES
            for folder in stores:
                if held + more_bytes <= self.max_bytes and more_bytes <= free and _is_root(folder.name):
                    break
                if _evict(folder):
                    held -= sizes[folder]
                    free += sizes[folder]
        if held + more_bytes > self.max_bytes:
            raise UsageError(
                f"{more_bytes / 1e6:.1f} MB of weights do not fit beside {held / 1e6:.1f} MB in use "
                f"into a cache of {self.max_bytes / 1e6:.1f} MB",
                hint="Choose a larger --cache-size, or fewer blocks.",
            )
        if more_bytes > free:
            raise UsageError(
                f"{more_bytes / 1e6:.1f} MB of weights do not fit on the disk of {self.folder}: "
                f"of {(free + SPARE_DISK_BYTES) / 1e6:.0f} MB that are free "
                f"{SPARE_DISK_BYTES / 1e6:.0f} stay so",
                hint="Free some space, or set SWARM_NODE_HOME to a folder on another disk.",
            )

    def _by_age(self) -> list[Path]:
        """The stores' folders, the least lately used first; before them what was set aside, or was being
        evicted when a process died."""
        try:
            found = [path for path in self.folder.iterdir() if _is_root(path.name.partition(".")[0])]
        except OSError:
            return []
        return sorted(found, key=lambda path: (_is_root(path.name), _used_at(path)))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock out other processes that open or evict a store. A read-only disk needs no lock."""
        lock = FileLock(self.folder / ".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock.acquire()
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM) or not self.folder.is_dir():
                raise unwritable(self.folder, error) from None
        try:
            yield
        finally:
            lock.release()


def _evict(folder: Path) -> bool:
    """False for a store that is in use. It is renamed first, because a store with only a part removed would
    be taken for a whole one if this process died meanwhile."""
    gone = folder.with_suffix(".evicted")
    try:
        if is_used(folder):
            return False
        if gone != folder:
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            if is_used(gone):  # another process has just opened it
                gone.rename(folder)
                return False
    except OSError:
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True


def _is_root(name: str) -> bool:
    return len(name) == 64 and _HEX.issuperset(name)


def _used_at(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:  # another process has just evicted it
        return 0.0


def _disk_bytes(folder: Path) -> int:
    """The bytes that a store takes on the disk: holes take nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except OSError:  # a process that uses it has just removed it
            continue
        total += getattr(status, "st_blocks", -(-status.st_size // 512)) * 512
    return total
