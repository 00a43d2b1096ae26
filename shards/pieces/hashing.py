"""A model's files on this disk: which they are, its identity, and its piece manifest.

Everything is hashed together: the disk is read once for the identity and the pieces.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from ...swarm.errors import CheckpointError
from ..formats.gguf.reader import GGUFFile, gguf_files, is_gguf
from ..formats.hf.safetensors_reader import INDEX, SINGLE, LocalShard, weight_files
from .digest import SMALL_FILES, FileHash, ModelIdentity, gguf_names, identity_of, is_weights
from .file_hashes import FileHashes, Progress, hash_files
from .manifest import PieceFile, PieceManifest, piece_size_for


def model_files(path: Path) -> dict[str, Path]:
    """The files that shape a model's answers by their names in a manifest, sorted: all of them must be here.

    ``path``: any GGUF file of a model, a folder of them or a HuggingFace directory. CheckpointError where a
    file is missing.
    """
    if is_gguf(path):
        parts = gguf_files(path)
        return dict(zip(gguf_names(len(parts)), parts, strict=True))
    files = {name: path / name for name in SMALL_FILES if (path / name).is_file()}
    weights = weight_files(path)
    if SINGLE in weights:  # an index beside it is not read by anybody
        files.pop(INDEX, None)
    files |= {name: path / name for name in weights}
    return dict(sorted(files.items()))


def model_identity(path: Path, *, progress: Progress | None = None) -> ModelIdentity:
    """The identity of a model: see ``model_files``. Blocks while files are read that are not
    remembered. Raises as ``hash_files``."""
    return identity_of(hashed(model_files(path), progress=progress))


def identity_and_root(path: Path, *, progress: Progress | None = None) -> tuple[ModelIdentity, str]:
    """As ``model_identity``, and the root of the piece manifest, from the same reading: "" for files that
    peers would not take."""
    files = model_files(path)
    hashes = hash_files(files, _piece_size(files), progress=progress)
    identity = identity_of(FileHash(name, each.size, each.sha256) for name, each in hashes.items())
    try:
        return identity, _manifest(files, hashes).root
    except CheckpointError:
        return identity, ""


def hashed(files: Mapping[str, Path], *, progress: Progress | None = None) -> list[FileHash]:
    """The hashes of some files of a model."""
    hashes = hash_files(files, progress=progress)
    return [FileHash(name, each.size, each.sha256) for name, each in hashes.items()]


def manifest_of(
    path: Path,
    *,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    piece_size: int | None = None,
) -> PieceManifest:
    """As ``model_identity``. ``piece_size`` None is the size that all peers use.

    CheckpointError also for files that are damaged.
    """
    files = model_files(path)
    size = piece_size or _piece_size(files)
    return _manifest(files, hash_files(files, size, progress=progress, stop=stop))


def _manifest(files: Mapping[str, Path], hashes: Mapping[str, FileHashes]) -> PieceManifest:
    entries = [
        PieceFile(name, each.size, head_of(name, files[name]), each.pieces, each.sha256)
        for name, each in hashes.items()
    ]
    return PieceManifest(next(iter(hashes.values())).piece_size, tuple(entries))


def _piece_size(files: Mapping[str, Path]) -> int:
    try:
        return piece_size_for(sum(path.stat().st_size for path in files.values()))
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror or error}") from None


def head_of(name: str, path: Path) -> int:
    """How many bytes of the file every opening reads."""
    if not is_weights(name):
        return path.stat().st_size
    file = GGUFFile(path) if name.endswith(".gguf") else LocalShard(path)
    file.close()
    return file.head
