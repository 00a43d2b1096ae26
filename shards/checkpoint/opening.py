"""Opening a model in any of its forms."""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path

from ...swarm.errors import CheckpointError, SwarmError, UsageError
from ...swarm.names import listed, near_names
from ...swarm.types import Span
from ..families.named_source import NamedSource
from ..formats.config import ModelConfig
from ..formats.gguf.reader import few, gguf_name, is_gguf, likely_models, open_gguf
from ..formats.gguf.tensors import gguf_tensors
from ..formats.hf.safetensors_reader import open_directory
from ..formats.hf.tensors import checked_tensors
from ..formats.not_a_model import called, is_pipeline, models_in, no_path_error, refuse_file
from ..pieces.digest import ModelIdentity
from ..pieces.file_hashes import FileState, Progress
from ..pieces.hashing import identity_and_root, model_files, model_identity
from ..pieces.store import FILES, PART, is_store
from ..tokenizer.source import DirectoryTokenizer, GGUFTokenizer, TokenizerSource
from .checkpoint import Checkpoint, check_span, directory_config, directory_name
from .stored import open_stored

_NEAR = 8
"""So many models of a folder, besides those of near names, are tried for a message."""
_TRIED = 32
"""So many models of a folder are tried for the list of those that run."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_GGUF = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*:[A-Za-z0-9][\w.+ /-]*")
"""``OWNER/NAME:QUANTIZATION`` or ``OWNER/NAME:FILE.gguf``."""


def open_checkpoint(
    path_or_name: str,
    *,
    blocks: Span | None = None,
    client: bool = False,
    weights: bool = True,
    pieces: bool = False,
    next_bytes: int = 0,
    progress: Progress | None = None,
) -> Checkpoint:
    """A HuggingFace directory, any ``.gguf`` file of a model or the folder of its files, a model fetched from
    peers, or the name of one on the hub.

    Blocks while the model's files are hashed for its identity, which is remembered; with ``pieces`` their
    root is known as well. ``progress(done_bytes, total_bytes, label)`` then, and while files are downloaded.
    Of a hub model only the bytes are fetched that hold ``blocks`` and, for a ``client``, embedding, norm,
    head and tokenizer; all of it where neither is named, and without ``weights`` only what describes the
    model. ``next_bytes``: the first block that guesses further tokens comes, too, where it is at most of this
    size. UsageError where ``blocks`` are outside the model, CheckpointError for files that are missing or
    damaged, UnsupportedModelError for models we cannot run, NetworkError where the hub cannot be reached.
    """
    path = Path(path_or_name).expanduser()
    checkpoint: Checkpoint
    _refuse_several(path)
    if is_store(path):
        checkpoint = open_stored(path, blocks, client)
    elif is_gguf(path):
        checkpoint = _open_gguf(path, pieces, progress)
    elif path.is_dir():
        checkpoint = _open_directory(path, pieces, progress)
    elif is_hub_name(path_or_name):
        from .hub import open_hub_model  # here: huggingface_hub is imported only for hub models

        checkpoint = open_hub_model(
            path_or_name,
            blocks=blocks,
            client=client,
            weights=weights,
            next_bytes=next_bytes,
            progress=progress,
        )
    else:
        raise no_path_error(path_or_name, near_in(path.parent, path.name))
    if blocks is not None:
        try:
            check_span(blocks, checkpoint.config)
        except UsageError:
            checkpoint.close()
            raise
    return checkpoint


def check_model(path: Path) -> None:
    """Raises the ModelError for which no node, or no client, can use the model at ``path``, if that shows in
    the headers of its files: no tensor is read, and nothing is hashed. A fetched model must be whole."""
    if is_store(path):
        path = path / FILES
    tokenizer: TokenizerSource
    if is_gguf(path):
        tensors, tokenizer = _gguf_tensors(path)[2:]
    else:
        config, tensors = _directory_tensors(path)
        tokenizer = DirectoryTokenizer(path, config)
    try:
        tokenizer.check()
    finally:
        tensors.close()


def near_in(folder: Path, name: str) -> list[str]:
    """Names of models in a folder that run: first those that ``name`` may be a misspelling of."""
    names = models_in(folder)
    names = list(dict.fromkeys((*near_names(name, names), *names[:_NEAR])))
    return [each for each in names if _runs(folder / each)]


def _refuse_several(folder: Path) -> None:
    """CheckpointError for a folder of several models, or of one in a folder of its own."""
    if not folder.is_dir() or (folder / "config.json").is_file() or is_store(folder) or is_pipeline(folder):
        return
    ggufs = likely_models(folder)
    directories = (folder / name for name in models_in(folder))
    models = ggufs | {path: path.name for path in directories if path.is_dir() and path not in ggufs}
    if len(models) > 1 or (models and not ggufs):
        runs = [str(path) for path in islice(models, _TRIED) if _runs(path)]
        kind = "GGUF models" if len(models) == len(ggufs) else "models in folders of their own"
        raise CheckpointError(
            f"{called(folder)} holds {len(models)} {kind}: {few(list(models.values()))}",
            hint=f"Give the path of one that can run: {listed(runs)}."
            if runs
            else f"None of them can run. To be told why, give the path of one: {next(iter(models))}",
        )


def _runs(path: Path) -> bool:
    try:
        check_model(path)
    except SwarmError:
        return False
    return True


def _directory_tensors(directory: Path) -> tuple[ModelConfig, NamedSource]:
    config, source = directory_config(directory), open_directory(directory)
    try:
        return checked_tensors(config, source, str(directory))
    except BaseException:
        source.close()
        raise


def _open_directory(directory: Path, pieces: bool, progress: Progress | None) -> Checkpoint:
    config, source = _directory_tensors(directory)
    try:
        identity = _identified(directory, pieces, progress)
    except BaseException:
        source.close()
        raise
    return Checkpoint(
        directory_name(directory), config, source, DirectoryTokenizer(directory, config), *identity
    )


def _identified(
    path: Path, pieces: bool, progress: Progress | None
) -> tuple[ModelIdentity, str, list[FileState]]:
    files = [FileState.of(file) for file in model_files(path).values()]
    if pieces:
        return *identity_and_root(path, progress=progress), files
    return model_identity(path, progress=progress), "", files


def _gguf_tensors(path: Path) -> tuple[str, ModelConfig, NamedSource, GGUFTokenizer]:
    """The model's name, and what is read of it."""
    if path.name.endswith(PART) and is_store(path.parent.parent):
        raise CheckpointError(f"{path} has holes", hint=f"Give the directory {path.parent.parent}.")
    refuse_file(path)
    source = open_gguf(path)
    try:
        return gguf_name(source.header.file.path), *gguf_tensors(source), GGUFTokenizer(source.header)
    except BaseException:
        source.close()
        raise


def _open_gguf(path: Path, pieces: bool, progress: Progress | None) -> Checkpoint:
    name, config, tensors, tokenizer = _gguf_tensors(path)
    try:
        identity = _identified(path, pieces, progress)
    except BaseException:
        tensors.close()
        raise
    return Checkpoint(name, config, tensors, tokenizer, *identity)


def is_hub_name(text: str) -> bool:
    return bool(_HUB_NAME.fullmatch(text) or _HUB_GGUF.fullmatch(text)) and not looks_like_path(text)


def looks_like_path(text: str) -> bool:
    """True if the text means a file: such names are looked up nowhere else."""
    return (
        text.startswith((".", "/", "~", os.sep))
        or (text.endswith((".gguf", ".safetensors", ".bin", "/")) and not _HUB_GGUF.fullmatch(text))
        or "\\" in text
        or (text.count("/") == 1 and Path(text).parent.is_dir())
    )
