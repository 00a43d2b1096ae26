"""Small files that outlive a process: after a crash or a power cut there is the old one, or the new one.

The data is on the disk before the name leads to it. Without that a file system may keep the name and lose the
data: a file of the right name with nothing, or zeros, in it.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_SCRATCH = ".scratch"
STALE_S = 60.0
"""A temporary file that is older than this many seconds was left by a process that was killed."""


def replace_file(path: Path, data: bytes | str) -> None:
    """Write the whole file, in place of the one that is there, for its owner alone. OSError: nothing has
    changed. The folder must be there."""
    with _written_beside(path, data) as scratch:
        os.replace(scratch, path)
    sync_folder(path.parent)


def create_file(path: Path, data: bytes | str) -> None:
    """As ``replace_file``, but a file that is there, or that another process makes meanwhile, stays."""
    with _written_beside(path, data) as scratch:
        try:
            os.link(scratch, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            if not path.exists():
                os.rename(scratch, path)
    sync_folder(path.parent)


def set_aside(path: Path) -> Path | None:
    """Give a damaged file or folder another name, ``NAME.bad``, in place of what was set aside before: None
    where the disk does not allow it."""
    aside = path.with_name(f"{path.name}.bad")
    try:
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
    except OSError:
        return None
    return aside


def sync_folder(folder: Path) -> None:
    """Bring names that were given or taken in a folder to the disk, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders, and some file systems sync none
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _written_beside(path: Path, data: bytes | str) -> Iterator[str]:
    _remove_left_behind(path)
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", suffix=_SCRATCH, dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        yield scratch
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)


def _remove_left_behind(path: Path) -> None:
    """Remove temporary files of this file that killed processes have left."""
    for left in path.parent.glob(f".{glob.escape(path.name)}-*{_SCRATCH}"):
        with contextlib.suppress(OSError):  # another process was faster
            if time.time() - left.lstat().st_mtime > STALE_S:
                left.unlink()


def state_folder() -> Path:
    """Where this user's swarm keeps what outlives a process, such as keys, histories and weights:
    ``$SWARM_NODE_HOME``, else ``~/.swarm-node``."""
    return Path(os.environ.get("SWARM_NODE_HOME") or Path.home() / ".swarm-node")
