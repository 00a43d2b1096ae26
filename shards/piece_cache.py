"""The folder of fetched models: one piece store a root, the least lately used evicted first."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ..swarm.errors import CheckpointError, UsageError
from ..swarm.types import ModelRef
from .piece_manifest import PieceManifest
from .piece_store import PieceStore, is_store, is_used

DEFAULT_CACHE_BYTES = 200_000_000_000
"""``--cache-size``, too."""
SPARE_DISK_BYTES = 1_000_000_000
"""Left free on the disk, whatever the limit says: a full disk breaks more than this program."""
_HEX = frozenset("0123456789abcdef")


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
        """The model's store, made if it is not there; close it. CheckpointError, blocks."""
        with self._locked():
            return PieceStore.create(self.folder / manifest.root, manifest, model.name, model.digest)

    def find(self, root: str) -> PieceStore | None:
        """The store of this root, if there is one; close it."""
        if len(root) != 64 or not _HEX.issuperset(root) or not is_store(self.folder / root):
            return None
        with self._locked():
            try:
                return PieceStore(self.folder / root)
            except CheckpointError:
                return None

    def models(self) -> list[CachedModel]:
        """By name; the most lately used first among those of one name."""
        found = []
        for folder in self._by_age():
            try:
                with PieceStore(folder, use=False) as store:
                    found.append(
                        CachedModel(
                            store.name, store.digest, folder.name, folder, store.is_whole, store.bytes_held
                        )
                    )
            except CheckpointError:
                continue
        found.reverse()
        return sorted(found, key=lambda model: model.name)

    def make_room(self, store: PieceStore, more_bytes: int) -> None:
        """Evict other stores until ``more_bytes`` fit beside what ``store`` holds. Blocks.

        UsageError where they cannot, because of the limit or of the disk.
        """
        with self._locked():
            stores = [folder for folder in self._by_age() if folder != store.folder]
            sizes = {folder: _disk_bytes(folder) for folder in stores}
            held = store.bytes_held + sum(sizes.values())
            free = shutil.disk_usage(self.folder).free - SPARE_DISK_BYTES
            for folder in stores:
                if held + more_bytes <= self.max_bytes and more_bytes <= free:
                    break
                if is_used(folder):
                    continue
                shutil.rmtree(folder, ignore_errors=True)
                held -= sizes[folder]
                free += sizes[folder]
        if held + more_bytes > self.max_bytes:
            raise UsageError(
                f"{more_bytes / 1e9:.2f} GB of weights do not fit beside {held / 1e9:.2f} GB in use "
                f"into a cache of {self.max_bytes / 1e9:.2f} GB",
                hint="Choose a larger --cache-size, or fewer blocks.",
            )
        if more_bytes > free:
            raise UsageError(
                f"{more_bytes / 1e9:.2f} GB of weights do not fit on the disk of {self.folder}: "
                f"{max(0, free) / 1e9:.2f} GB are free",
                hint="Free some space, or set SWARM_NODE_HOME to a folder on another disk.",
            )

    def _by_age(self) -> list[Path]:
        """The stores' folders, the least lately used first."""
        if not self.folder.is_dir():
            return []
        return sorted(filter(is_store, self.folder.iterdir()), key=lambda path: path.stat().st_mtime)

    def _locked(self) -> FileLock:
        """Against another process that opens, or evicts, a store at the same time."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise CheckpointError(f"cannot write {self.folder}: {error.strerror or error}") from None
        return FileLock(self.folder / ".lock")


def _disk_bytes(folder: Path) -> int:
    """What a store takes on the disk: holes take nothing."""
    total = 0
    for path in folder.rglob("*"):
        status = path.lstat()
        total += getattr(status, "st_blocks", -(-status.st_size // 512)) * 512
    return total
