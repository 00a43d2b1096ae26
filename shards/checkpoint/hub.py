"""Models on the HuggingFace hub: only the bytes that are needed, and the headers of the rest.

The hub tells the SHA-256 of a large file before it sends the file, so the model's digest is known without
the bytes that are not needed. A file that is here whole must have the SHA-256 that the hub has told.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ...swarm.errors import CheckpointError, NetworkError, UnsupportedModelError
from ...swarm.runtime.state_files import set_aside
from ...swarm.types import Span
from ..families.named_source import NamedSource
from ..formats.config import ModelConfig
from ..formats.files.mapped_file import AbsentError
from ..formats.files.tensor_files import TensorFiles
from ..formats.gguf.header import MAX_HEADER
from ..formats.gguf.reader import GGUFFile, GGUFSource
from ..formats.gguf.tensors import gguf_tensors
from ..formats.hf.safetensors_reader import INDEX, SINGLE, LocalShard, only_row, read_index, shard_names
from ..formats.hf.tensors import checked_tensors
from ..formats.not_a_model import held_instead
from ..formats.quantized.source import stored_parts
from ..formats.tensors import needed_tensors, next_names
from ..pieces.digest import CLIENT_FILES, SMALL_FILES, FileHash, ModelIdentity, identity_of
from ..pieces.file_hashes import Progress
from ..pieces.hashing import hashed
from ..tokenizer.source import DirectoryTokenizer, GGUFTokenizer, TokenizerSource
from .checkpoint import Checkpoint, check_span, directory_config
from .hub_answers import MissingFileError
from .hub_gguf import called, chosen, gguf_of
from .hub_repo import HubFile, HubRepo, sha256_of_blob
from .hub_weights import FIRST_READ, DamagedError, HubWeights, damaged_download, kept_gguf

_Described = tuple[ModelConfig, NamedSource, TokenizerSource]
_Files = TypeVar("_Files", bound=TensorFiles[Any])


def open_hub_model(
    name: str,
    *,
    blocks: Span | None,
    client: bool,
    progress: Progress | None,
    weights: bool = True,
    next_bytes: int = 0,
) -> Checkpoint:
    """See ``open_checkpoint``. What was fetched and is damaged, or cannot be read, is fetched again, once."""
    ask = _Asked(blocks, client, weights, next_bytes, progress)
    try:
        return _open(name, ask)
    except DamagedError as error:
        damaged = error
    aside = [each for place in damaged.places if (each := set_aside(place)) is not None]
    if not aside:
        raise damaged
    try:
        checkpoint = _open(name, ask)
    except NetworkError:
        raise damaged from None
    except DamagedError as again:
        for place in again.places:  # the hub may send it right at another start
            set_aside(place)
        raise
    for each in aside:
        if each.is_dir():
            shutil.rmtree(each, ignore_errors=True)
        else:
            each.unlink(missing_ok=True)
    return checkpoint


class _HubCheckpoint(Checkpoint):
    """Keeps its store from being evicted until it is closed."""

    def __init__(self, name: str, described: _Described, identity: ModelIdentity, held: HubWeights) -> None:
        super().__init__(name, *described, identity)
        self._held = held

    def close(self) -> None:
        super().close()
        self._held.close()


def _open(name: str, ask: _Asked) -> Checkpoint:
    repo_name, _, choice = name.partition(":")
    repo = HubRepo(repo_name, ask.progress)
    if choice:
        return _open_gguf(repo, choice, ask)
    is_gguf = not any(path.endswith(".safetensors") for path in repo.files) and bool(gguf_of(repo.files))
    return _open_gguf(repo, "", ask) if is_gguf else _open_directory(repo, ask)


@dataclass(frozen=True, slots=True)
class _Asked:
    """See ``open_checkpoint``."""

    blocks: Span | None
    client: bool
    weights: bool
    next_bytes: int
    progress: Progress | None

    @property
    def everything(self) -> bool:
        return self.weights and self.blocks is None and not self.client

    def needed(self, config: ModelConfig) -> list[str]:
        if self.blocks is not None:
            check_span(self.blocks, config)
        return needed_tensors(config, self.blocks, self.client) if self.weights else []

    def stored(self, config: ModelConfig, tensors: NamedSource) -> list[str]:
        """What the files call the tensors that are needed; one of theirs may hold many."""
        needed = (tensors.stored(name) for name in self.needed(config) if name in tensors.manifest)
        return list(dict.fromkeys([*needed, *tensors.next_stored(next_names(config), self.next_bytes)]))


def _open_directory(repo: HubRepo, ask: _Asked) -> Checkpoint:
    if "config.json" not in repo.files and not repo.only_local:
        raise _no_model(repo, "no config.json")
    directory = repo.fetch("config.json").parent
    if ask.client or ask.everything:
        repo.fetch("tokenizer.json")  # an error that says so where there is none
    small = {file: path for file in SMALL_FILES if (path := repo.fetch_optional(file)) is not None}
    try:
        config = directory_config(directory)
        index = read_index(small[INDEX]) if INDEX in small and SINGLE not in repo.files else None
    except CheckpointError as error:
        read = [path for file, path in small.items() if file not in CLIENT_FILES]
        raise DamagedError(error.message, *read, hint=error.hint) from None
    ask.needed(config)  # before anything large comes
    names = _weight_files(repo, index)
    if SINGLE in names:
        small.pop(INDEX, None)  # as in a directory: it is not read
    files = {name: repo.files.get(name, HubFile(name, -1)) for name in names}
    held = HubWeights(repo, repo.name, files, ask.progress)
    tokenizer = _HubTokenizer(repo, directory, config)

    def open_files() -> TensorFiles[LocalShard]:
        return TensorFiles(LocalShard(*held.file(name)) for name in names)

    def described(source: TensorFiles[LocalShard]) -> _Described:
        return *checked_tensors(config, source, repo.name), tokenizer

    return _assembled(held, open_files, described, ask, repo.name, small)


def _open_gguf(repo: HubRepo, choice: str, ask: _Asked) -> Checkpoint:
    name, files = _gguf_files(repo, choice)
    held = HubWeights(repo, name, files, ask.progress)
    heads = dict.fromkeys(files, FIRST_READ)

    def open_file(file: str) -> GGUFFile:
        """Its header is as long as it is: more of it is asked for until it can be read."""
        while True:
            path, presence = held.file(file, heads[file])
            try:
                return GGUFFile(path, presence)
            except (AbsentError, UnsupportedModelError):
                raise
            except CheckpointError:
                if presence is None or not presence.begins_with(b"GGUF") or heads[file] >= MAX_HEADER:
                    raise
                heads[file] *= 4

    def open_files() -> GGUFSource:
        return GGUFSource(map(open_file, files))

    def described(source: GGUFSource) -> _Described:
        return *gguf_tensors(source), GGUFTokenizer(source.header)

    return _assembled(held, open_files, described, ask, name, {})


def _gguf_files(repo: HubRepo, choice: str) -> tuple[str, dict[str, HubFile]]:
    """What the model is called, and its files by their names in the digest."""
    models = gguf_of(repo.files)
    try:
        model = chosen(repo.name, choice, models)
        return called(repo.name, model, models), model.files(repo.files)
    except CheckpointError:
        if repo.only_local:
            return kept_gguf(repo, choice)
        raise


def _assembled(
    held: HubWeights,
    open_files: Callable[[], _Files],
    described: Callable[[_Files], _Described],
    ask: _Asked,
    name: str,
    small: Mapping[str, Path],
) -> Checkpoint:
    """Opens the files by their headers, fetches what is needed of them, and opens them again if it came into
    other places."""
    source: _Files | None = None
    try:
        if ask.everything:
            held.fetch_whole()
        held.fetch_heads()
        while True:
            source = opened = held.opened(open_files, headers=True)
            config, tensors, _ = description = held.opened(partial(described, opened))
            stored = ask.stored(config, tensors)
            parts = dict.fromkeys(part for each in stored for part in stored_parts(each, opened.manifest))
            if not held.fetch(
                (held.name_of(path), offset, size) for path, offset, size in map(opened.place, parts)
            ):
                break
            opened.close()
        identity = identity_of([*_small_hashes(small, ask.progress), *held.hashes()])
    except BaseException:
        if source is not None:
            source.close()
        held.close()
        raise
    return _HubCheckpoint(name, description, identity, held)


def _weight_files(repo: HubRepo, index: Mapping[str, str] | None) -> list[str]:
    """As ``weight_files``, of the hub; where it cannot be asked, of what was fetched. ``index``: where one is
    read."""
    if SINGLE in repo.files:
        return [SINGLE]
    if index is not None:
        return _all_there(repo, shard_names(index))
    if repo.only_local:
        return [SINGLE]
    if not (names := only_row(repo.files, repo.name)):
        raise _no_model(repo, f"no {SINGLE}")
    return _all_there(repo, names)


def _all_there(repo: HubRepo, names: list[str]) -> list[str]:
    if not repo.only_local and (missing := [name for name in names if name not in repo.files]):
        raise MissingFileError(
            f"{repo.name} lacks {len(missing)} of its {len(names)} safetensors files: {missing[0]}",
            hint="Its owner has to upload them; take another repository of the model.",
        )
    return names


def _no_model(repo: HubRepo, lacks: str) -> MissingFileError:
    """By what the repository holds instead."""
    what = held_instead(sorted({path.partition("/")[0] for path in repo.files}))
    return MissingFileError(
        f"{repo.name} on the HuggingFace hub holds {what}{', and ' if what else ''}{lacks}",
        hint="Take another repository of the model: with config.json and safetensors files, or .gguf files.",
    )


class _HubTokenizer(DirectoryTokenizer):
    def __init__(self, repo: HubRepo, directory: Path, config: ModelConfig) -> None:
        super().__init__(directory, config)
        self._repo = repo

    def check(self) -> None:
        if self._repo.cached("tokenizer.json") is not None:
            super().check()
        elif self._repo.only_local:
            raise CheckpointError(
                f"tokenizer.json of {self._repo.name} is not here, and the HuggingFace hub cannot be reached",
                hint="Start again when it can be reached.",
            )
        else:
            raise CheckpointError(
                f"{self._repo.name} has no tokenizer.json on the HuggingFace hub",
                hint="Take another model; or download this one, have transformers write its tokenizer.json, "
                "and give the path of the directory.",
            )


def _small_hashes(small: Mapping[str, Path], progress: Progress | None) -> list[FileHash]:
    """DamagedError for a file that the hub's cache calls by another SHA-256."""
    found = hashed(small, progress=progress)
    for file in found:
        if sha256_of_blob(small[file.name]) not in (b"", file.content):
            raise damaged_download(small[file.name])
    return found
