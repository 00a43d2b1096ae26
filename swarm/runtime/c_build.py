"""Our C kernels as shared libraries: compiled once for this machine's CPU, kept in the user's cache folder.

Compiling on the spot is what lets one source use every instruction the CPU has. Where there is no compiler,
callers get NativeUnavailableError with the reason and take their plain path. Compilers tried, in order:
``$SWARM_NODE_CC``, ``cc``, ``clang``, ``gcc``, and Zig's from PyPI (``pip install ziglang``), which needs
nothing else on the machine. ``SWARM_NODE_NATIVE=0`` turns all of it off.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

COMPILE_SECONDS = 300.0
"""A compiler that takes more seconds than this is stopped: the sources take seconds even on a small board."""
KEPT_BUILDS = 8
"""At most this many libraries of one name stay in the cache, so that switching between versions does not
compile again."""
MAX_ERROR_CHARS = 400
_BASE_FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wall")
_LIBRARIES = ("-lm", "-pthread")
_NATIVE_FLAGS = (("-march=native",), ("-mcpu=native",), ())
"""Flags that are tried in order: for x86 and most compilers, for clang on ARM, and for plain code of the
architecture."""
_SCRATCH = "-scratch-"
"""The name of a running compiler's folder is the library's name, followed by this."""


class NativeUnavailableError(Exception):
    """There is no native library; the message says why, for a log line."""


_loaded: dict[tuple[str, str], ctypes.CDLL] = {}
_failed: dict[tuple[str, str], str] = {}
_lock = threading.Lock()


def load_library(name: str, sources: Sequence[Path], flags: Sequence[str] = ()) -> ctypes.CDLL:
    """The library made of ``sources`` with extra compiler ``flags``, compiled if it is not in the cache.

    Blocks for the seconds that compiling takes; processes that ask at the same time wait for the first one.
    Headers beside the sources count as sources. The answer, a failure too, is kept for this process.
    Raises NativeUnavailableError.
    """
    key = (name, _build_key(name, sources, flags))
    with _lock:
        if key in _failed:
            raise NativeUnavailableError(_failed[key])
        if key not in _loaded:
            try:
                _loaded[key] = ctypes.CDLL(str(_built(key, sources, flags)))
            except (NativeUnavailableError, OSError) as error:
                _failed[key] = str(error)
                logger.warning("event=native_unavailable library=%s reason=%r", name, str(error))
                raise NativeUnavailableError(str(error)) from error
        return _loaded[key]


def is_built(name: str, sources: Sequence[Path], flags: Sequence[str] = ()) -> bool:
    """Whether ``load_library`` would answer without compiling (or fail without trying)."""
    try:
        key = (name, _build_key(name, sources, flags))
    except NativeUnavailableError:
        return True
    if key in _loaded or key in _failed:
        return True
    try:
        return _is_whole(_library_path(_cache_folder(), key))
    except OSError:
        return False


def enabled() -> bool:
    """False where the environment says SWARM_NODE_NATIVE=0."""
    return os.environ.get("SWARM_NODE_NATIVE", "1").strip().lower() not in ("0", "off", "no", "false")


@cache
def compiler() -> tuple[str, ...]:
    """The command of a C compiler that runs. Raises NativeUnavailableError where there is none."""
    for path in _installed():
        if os.environ.get("SWARM_NODE_CC") or _runs(path):  # a Mac's `cc` may only offer the tools
            return (path,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "cc")
    raise NativeUnavailableError("no C compiler found (cc, clang, gcc; `pip install ziglang` brings one)")


def _installed() -> list[str]:
    """The programs that may be a C compiler, in the order to try them. Raises NativeUnavailableError."""
    chosen = os.environ.get("SWARM_NODE_CC")
    names = [chosen] if chosen else ["cc", "clang", "gcc"]
    found = [path for name in names if (path := shutil.which(name)) is not None]
    if chosen and not found:
        raise NativeUnavailableError(f"SWARM_NODE_CC names {chosen!r}, which is not a program here")
    return found


@cache
def cpu_identity() -> str:
    """What decides which instructions compiled code may use: architecture, CPU model and its features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("vendor_id", "model name", "flags", "Features", "CPU implementer", "CPU part")
    seen = sorted({line for line in lines if line.split("\t")[0].split(":")[0].strip() in wanted})
    return "\n".join((platform.system(), platform.machine(), *seen))


def cache_home() -> Path:
    """The folder of files that this program can make again: ``$XDG_CACHE_HOME/swarm-node`` or under
    ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "swarm-node"


def _build_key(name: str, sources: Sequence[Path], flags: Sequence[str]) -> str:
    """A digest of everything that the built library depends on."""
    if not enabled():
        raise NativeUnavailableError("turned off by SWARM_NODE_NATIVE=0")
    if os.name != "posix":
        raise NativeUnavailableError("compiling kernels is for Linux and macOS")
    digest = hashlib.sha256()
    headers = {header for source in sources for header in source.parent.glob("*.h")}
    try:
        for path in [*sources, *sorted(headers)]:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
        compilers = [_identity(path) for path in _installed() or compiler()[:1]]
    except OSError as error:
        raise NativeUnavailableError(f"the sources of {name} are missing: {error}") from error
    for part in (*compilers, cpu_identity(), *_BASE_FLAGS, *flags):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:32]


def _identity(path: str) -> str:
    """What changes when a compiler is replaced. It is not run for this: a start has no time for it."""
    program = os.path.realpath(path)
    status = os.stat(program)
    return f"{path} {program} {status.st_size} {status.st_mtime_ns}"


def _runs(path: str) -> bool:
    try:
        subprocess.run([path, "--version"], capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _built(key: tuple[str, str], sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """The library's file, compiled now if there is no whole one."""
    try:
        folder = _cache_folder()
        path = _library_path(folder, key)
        with _locked(folder / f"{key[0]}.lock"):
            if not _is_whole(path):
                _compile(key[0], path, sources, flags)
                _prune(folder, key[0])
    except OSError as error:
        raise NativeUnavailableError(f"cannot write the kernel cache: {error}") from error
    return path


def _cache_folder() -> Path:
    """A folder that no other user can write to: what lies in it is run. Raises OSError."""
    folder = cache_home() / "native"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            f"{folder} can be written by others; remove it, or run `chmod go-w {shlex.quote(str(folder))}`"
        )
    return folder


def _library_path(folder: Path, key: tuple[str, str]) -> Path:
    return folder / f"{key[0]}-{key[1]}.so"


def _digest_path(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _is_whole(library: Path) -> bool:
    """Whether the file is as it was built: mapping a damaged one would kill the process."""
    try:
        return _digest_path(library).read_text() == hashlib.sha256(library.read_bytes()).hexdigest()
    except (OSError, UnicodeDecodeError):
        return False


def _compile(name: str, library: Path, sources: Sequence[Path], flags: Sequence[str]) -> None:
    problem = ""
    with tempfile.TemporaryDirectory(prefix=f"{name}{_SCRATCH}", dir=library.parent) as scratch:
        output = Path(scratch) / library.name
        for native in _NATIVE_FLAGS:
            command = [
                *(*compiler(), *_BASE_FLAGS, *native, *flags),
                *map(str, sources),
                *("-o", str(output), *_LIBRARIES),
            ]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=COMPILE_SECONDS, cwd=scratch
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise NativeUnavailableError(f"{command[0]} failed: {error}") from error
            if done.returncode == 0:
                digest = hashlib.sha256(output.read_bytes()).hexdigest()
                _digest_path(library).unlink(missing_ok=True)
                output.replace(library)
                _digest_path(library).write_text(digest)
                return
            problem = (
                problem or done.stderr.strip() or f"it ended with status {done.returncode}, and said nothing"
            )
    raise NativeUnavailableError(f"{compiler()[0]} could not compile: {problem[:MAX_ERROR_CHARS]}")


def _prune(folder: Path, name: str) -> None:
    """Call it under the lock: an earlier build has then ended, whether it succeeded or not."""
    for left in folder.glob(f"{name}{_SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)
    builds = sorted(folder.glob(f"{name}-*.so"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in builds[KEPT_BUILDS:]:
        old.unlink(missing_ok=True)
        _digest_path(old).unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it."""
    import fcntl

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
