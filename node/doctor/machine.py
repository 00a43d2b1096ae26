"""Memory, disk, open files, the files of this program, and the clock."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from ...swarm.runtime.c_build import cache_home
from ...swarm.runtime.state_files import state_folder
from ..resources import available_memory
from .finding import Finding, Health

LEAST_MEMORY, LEAST_DISK = 1 << 30, 5 << 30
"""Bytes. With less a node holds few blocks, or cannot keep what peers send."""
LEAST_FILES = 1024
"""Open files that a node of many peers needs."""
_SECRET = ("*.key", "*.toml", "api-keys*")
"""Files of the state folder that nobody else should read or write."""


def look_at_memory() -> Sequence[Finding]:
    free, total = available_memory("cpu"), psutil.virtual_memory().total
    says = f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"
    if free < LEAST_MEMORY:
        return [Finding("memory", Health.WARN, f"{says}: a node holds few blocks with it", "Close programs.")]
    return [Finding("memory", Health.OK, says)]


def look_at_disk() -> Sequence[Finding]:
    return list(_disk())


def _disk() -> Iterator[Finding]:
    for what, folder in (
        ("disk", state_folder()),
        ("cache", cache_home()),
        ("temporary files", Path(tempfile.gettempdir())),
    ):
        there = next(each for each in (folder, *folder.parents) if each.exists())
        details = {"folder": str(folder)}
        if not os.access(there, os.W_OK):
            yield Finding(
                what,
                Health.FAIL,
                "the folder cannot be written",
                f"Allow it: {shlex.join(['chmod', 'u+w', str(there)])}",
                details,
            )
            continue
        free = shutil.disk_usage(there).free
        least = LEAST_DISK if what == "disk" else LEAST_DISK // 50
        health = Health.OK if free >= least else Health.WARN
        advice = "" if health is Health.OK else f"Make room in {there}."
        yield Finding(what, health, f"{free / 1e9:.1f} GB free", advice, details)


def look_at_open_files() -> Sequence[Finding]:
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = soft if hard == resource.RLIM_INFINITY else max(soft, hard)
    if most != resource.RLIM_INFINITY and most < LEAST_FILES:
        advice = f"Allow more: ulimit -n {LEAST_FILES}, or LimitNOFILE={LEAST_FILES} in systemd."
        return [Finding("open files", Health.WARN, f"only {most} are allowed", advice)]
    return [
        Finding(
            "open files", Health.OK, f"{most if most != resource.RLIM_INFINITY else 'any number'} allowed"
        )
    ]


def look_at_own_files() -> Sequence[Finding]:
    """Keys and configuration that others may read or write."""
    folder = state_folder()
    if os.name != "posix" or not folder.is_dir():
        return []
    open_to_others = []
    for path in sorted(each for pattern in _SECRET for each in folder.glob(pattern)):
        mode = path.stat().st_mode
        allowed = stat.S_IRWXG | stat.S_IRWXO if path.suffix == ".key" else stat.S_IWGRP | stat.S_IWOTH
        if mode & allowed:
            open_to_others.append(str(path))
    if open_to_others:
        return [
            Finding(
                "own files",
                Health.WARN,
                f"{len(open_to_others)} of keys and configuration can be read or changed by others",
                f"Close them: {shlex.join(['chmod', '600', *open_to_others])}",
                {"files": ", ".join(open_to_others)},
            )
        ]
    return [Finding("own files", Health.OK, "keys and configuration are closed to others")]
