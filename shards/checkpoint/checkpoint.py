"""Opening a model, whatever form it comes in, and what can be asked of it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ...swarm.errors import CheckpointError, UsageError
from ...swarm.types import ModelRef, Span
from ..formats.config import ModelConfig
from ..formats.gguf.reader import GGUFSource
from ..formats.hf.config import hf_config, read_json
from ..formats.hf.safetensors_reader import open_directory
from ..formats.hf.tensors import checked_tensors
from ..formats.not_a_model import no_model_error, no_path_error
from ..formats.raw_tensor import RawTensor
from ..formats.tensors import TensorInfo, TensorSource
from ..pieces.digest import ModelIdentity
from ..pieces.file_hashes import FileState, Progress
from ..pieces.hashing import identity_and_root, model_files, model_identity
from ..pieces.store import PART, is_store
from ..tokenizer.source import DirectoryTokenizer, GGUFTokenizer, TokenizerSource

if TYPE_CHECKING:
    from ..tokenizer.tokenizer import Tokenizer

_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_HUB_CACHE = re.compile(r"^models--(.+?)--(.+)$")


class Checkpoint:
    """``ref`` (name and digest), ``identity`` and ``config`` of a model; tensors under HuggingFace's names,
    read when used.

    Not thread-safe while it is being closed; reading from several threads is fine.
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        source: TensorSource,
        tokenizer_source: TokenizerSource,
        identity: ModelIdentity,
        root: str = "",
        files: Sequence[FileState] = (),
    ) -> None:
        """``root``: of the files' piece manifest, where it is known. ``files``: as they were hashed."""
        self.config = config
        self.identity = identity
        self.ref = ModelRef(name, identity.digest, config.n_blocks, identity.brief, root)
        self._source = source
        self._files = files
        self._tokenizer_source = tokenizer_source
        self._tokenizer: Tokenizer | None = None

    def tensor(self, name: str) -> RawTensor:
        """CheckpointError where the model has no such tensor, or its file was not asked for at opening."""
        return self._source.tensor(name)

    def has(self, name: str) -> bool:
        return name in self._source.manifest

    @property
    def manifest(self) -> Mapping[str, TensorInfo]:
        """What is known of every tensor, those that were not fetched too."""
        return self._source.manifest

    def check_tokenizer(self) -> None:
        """Raises the ModelError for which every client refuses the model, where that shows without building
        the tokenizer. For a thread: it reads the disk."""
        self._tokenizer_source.check()

    def tokenizer(self) -> Tokenizer:
        """Built at the first call: a node that needs none never reads the vocabulary."""
        if self._tokenizer is None:
            self._tokenizer = self._tokenizer_source.build()
        return self._tokenizer

    def release(self) -> None:
        """Give the file pages read so far back, once the weights were copied out of them.

        CheckpointError where somebody has written into a file since it was hashed: then these are weights of
        another model.
        """
        self._source.release()
        for file in self._files:
            if file.is_overwritten():
                raise CheckpointError(
                    f"{file.path} changed while it was loaded", hint="Start again when it is written."
                )

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_checkpoint(
    path_or_name: str,
    *,
    blocks: Span | None = None,
    client: bool = False,
    weights: bool = True,
    pieces: bool = False,
    progress: Progress | None = None,
) -> Checkpoint:
    """A HuggingFace directory, a ``.gguf`` file, a model fetched from peers, or the name of one on the hub.

    Blocks while the model's files are hashed for its identity, which is remembered; with ``pieces`` their
    root is known as well. ``progress(done_bytes, total_bytes, label)`` then, and while files are downloaded.
    Of a hub model only the files are fetched that hold ``blocks`` and, for a ``client``, embedding, norm,
    head and tokenizer; all of them where neither is named, and without ``weights`` only what describes the
    model. UsageError where ``blocks`` are outside the model,
    CheckpointError for files that are missing or damaged, UnsupportedModelError for models we cannot run,
    NetworkError where the hub cannot be reached.
    """
    path = Path(path_or_name).expanduser()
    checkpoint: Checkpoint
    if is_store(path):
        from .stored import open_stored  # here: it needs this module

        checkpoint = open_stored(path, blocks, client)
    elif path.is_dir():
        checkpoint = _open_directory(path, pieces, progress)
    elif path.is_file():
        checkpoint = _open_file(path, pieces, progress)
    elif is_hub_name(path_or_name):
        from .hub import open_hub_model  # here: huggingface_hub is imported only for hub models

        checkpoint = open_hub_model(
            path_or_name, blocks=blocks, client=client, weights=weights, progress=progress
        )
    else:
        raise no_path_error(path_or_name)
    if blocks is not None:
        try:
            check_span(blocks, checkpoint.config)
        except UsageError:
            checkpoint.close()
            raise
    return checkpoint


def _open_directory(directory: Path, pieces: bool, progress: Progress | None) -> Checkpoint:
    config, source = checked_tensors(directory_config(directory), open_directory(directory), str(directory))
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


def directory_config(directory: Path) -> ModelConfig:
    """From config.json, and generation_config.json where there is one."""
    if not (directory / "config.json").is_file():
        raise no_model_error(directory, "no config.json")
    generation = directory / "generation_config.json"
    return hf_config(
        read_json(directory / "config.json"),
        read_json(generation) if generation.is_file() else {},
        str(directory / "config.json"),
    )


def directory_name(directory: Path) -> str:
    """The directory's own name; for a snapshot in the hub's cache, the model's name on the hub."""
    directory = directory.resolve()
    if directory.parent.name == "snapshots" and (match := _HUB_CACHE.match(directory.parent.parent.name)):
        return f"{match[1]}/{match[2]}"
    return directory.name or "model"


def check_span(span: Span, config: ModelConfig) -> None:
    if span.end > config.n_blocks:
        raise UsageError(
            f"blocks {span} are outside the model, which has {config.n_blocks}",
            hint=f"Choose blocks within 0-{config.n_blocks - 1}.",
        )


def _open_file(path: Path, pieces: bool, progress: Progress | None) -> Checkpoint:
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} is one file of a checkpoint", hint="Give the directory that it is in.")
    if path.name.endswith(PART):
        raise CheckpointError(f"{path} has holes", hint=f"Give the directory {path.parent.parent}.")
    source = GGUFSource(path)
    try:
        identity = _identified(path, pieces, progress)
    except BaseException:
        source.close()
        raise
    return Checkpoint(path.stem, source.config, source, GGUFTokenizer(source.header), *identity)


def is_hub_name(text: str) -> bool:
    return bool(_HUB_NAME.match(text)) and not looks_like_path(text)


def looks_like_path(text: str) -> bool:
    """Whether a person who wrote this meant a file: such names are looked up nowhere else."""
    return (
        text.startswith((".", "/", "~", os.sep))
        or text.endswith((".gguf", ".safetensors", ".bin", "/"))
        or "\\" in text
        or (text.count("/") == 1 and Path(text).parent.is_dir())
    )
