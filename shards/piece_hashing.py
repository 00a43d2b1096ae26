"""The piece manifest of a model's files on this disk.

Hashing reads every byte once: the result is remembered by path, size and time of change.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from ..swarm.errors import CheckpointError, RemoteProtocolError
from .bounded_json import read_bytes
from .gguf_header import GGUFHeader
from .mapped_file import MappedFile
from .piece_manifest import (
    CONFIG_NAMES,
    GGUF_NAME,
    MAX_MANIFEST,
    TOKENIZER_NAMES,
    PieceFile,
    PieceManifest,
    piece_size_for,
)
from .safetensors_header import header_length
from .safetensors_reader import INDEX, SINGLE, read_index, shard_names

Progress = Callable[[int, int, str], None]
"""``progress(done_bytes, total_bytes, label)``."""
_REMEMBERED = 64
"""Manifests kept of files that may have changed or gone since."""
_LABEL = "Hashing weights to share"


class HashingStopped(Exception):  # noqa: N818 - no error: somebody asked for it
    """``stop`` was set."""


def model_files(path: Path) -> dict[str, Path]:
    """The files of a model by their names in a manifest, sorted: all of them must be here.

    ``path``: a GGUF file or a HuggingFace directory. CheckpointError where a file is missing.
    """
    if path.is_file():
        return {GGUF_NAME: path}
    files = {name: path / name for name in (*CONFIG_NAMES, *TOKENIZER_NAMES) if (path / name).is_file()}
    if (path / SINGLE).is_file():  # an index beside it is not read by anybody
        files.pop(INDEX, None)
        files[SINGLE] = path / SINGLE
    elif INDEX in files:
        files |= {name: path / name for name in shard_names(read_index(path / INDEX))}
    else:
        raise CheckpointError(f"{path} holds neither {SINGLE} nor {INDEX}")
    for name, file in files.items():
        if not file.is_file():
            raise CheckpointError(f"{path} does not hold {name}: only a whole model can be shared")
    return dict(sorted(files.items()))


def manifest_of(
    path: Path,
    remembered: Path | None = None,
    *,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    piece_size: int | None = None,
) -> PieceManifest:
    """Reads and hashes all files; blocks for as long as that takes. ``remembered``: a folder for results.

    ``piece_size`` None is what all peers take. CheckpointError for files that are missing, damaged or change
    meanwhile; HashingStopped.
    """
    files = model_files(path)
    before = _state(files)
    record = None
    if remembered is not None:
        key = json.dumps([before, piece_size])
        record = remembered / f"{hashlib.sha256(key.encode()).hexdigest()}.manifest"
        if (known := _read(record)) is not None:
            return known
    sizes = {name: size for name, _, size, _ in before}
    total = sum(sizes.values())
    size = piece_size or piece_size_for(total)
    done = 0
    entries = []
    buffer = memoryview(bytearray(size))
    for name, file in files.items():
        hashes = bytearray()
        try:
            with file.open("rb", buffering=0) as opened:
                for offset in range(0, sizes[name], size):  # no further, should it grow meanwhile
                    n = _fill(opened.readinto, buffer[: min(size, sizes[name] - offset)])
                    if stop is not None and stop.is_set():
                        raise HashingStopped
                    hashes += hashlib.sha256(buffer[:n]).digest()
                    done += n
                    if progress is not None:
                        progress(done, total, _LABEL)
        except OSError as error:
            raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from None
        entries.append(PieceFile(name, sizes[name], _head(name, file), bytes(hashes)))
    if _state(files) != before:
        raise CheckpointError(f"{path} changed while it was hashed", hint="Start again when it is written.")
    manifest = PieceManifest(size, tuple(entries))
    if record is not None:
        _write(record, manifest)
    return manifest


def _fill(readinto: object, buffer: memoryview) -> int:
    """Read until the buffer is full or the file ends; a single read may give less."""
    n = 0
    while n < len(buffer) and (more := readinto(buffer[n:])):  # type: ignore[operator]
        n += more
    return n


def _head(name: str, path: Path) -> int:
    """How many bytes of the file everybody reads who opens it."""
    if not name.endswith((".gguf", ".safetensors")):
        return path.stat().st_size
    file = MappedFile(path)
    try:
        if name.endswith(".gguf"):
            return min(GGUFHeader(file).length, file.size)
        return 8 + header_length(file.slice(0, 8).tobytes(), file.size, str(path))
    finally:
        file.close()


def _state(files: Mapping[str, Path]) -> list[tuple[str, str, int, int]]:
    """What tells whether a file is still the one that was hashed."""
    found = []
    for name, path in files.items():
        try:
            status = path.stat()
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
        found.append((name, str(path.resolve()), status.st_size, status.st_mtime_ns))
    return found


def _read(record: Path) -> PieceManifest | None:
    """A remembered result: the root beside it guards against a damaged record, not against a forger here."""
    try:
        data = read_bytes(record, 32 + MAX_MANIFEST)
        manifest = PieceManifest.parse(data[32:], data[:32].hex())
        os.utime(record)
    except (OSError, CheckpointError, RemoteProtocolError):
        return None
    return manifest


def _write(record: Path, manifest: PieceManifest) -> None:
    try:
        record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = record.with_suffix(f".{os.getpid()}")
        part.write_bytes(bytes.fromhex(manifest.root) + manifest.encoded)
        part.replace(record)
        records = sorted(record.parent.glob("*.manifest"), key=lambda path: path.stat().st_mtime)
        for old in records[:-_REMEMBERED]:
            old.unlink(missing_ok=True)
    except OSError:
        pass  # it is hashed again next time
