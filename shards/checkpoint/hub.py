"""Models on the HuggingFace hub: only the bytes that are needed, and the headers of the rest.

The hub tells the SHA-256 of a large file before it sends the file, so the model's digest is known without
the bytes that are not needed. A file that is here whole must have the SHA-256 that the hub has told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ...swarm.errors import CheckpointError, NetworkError
from ...swarm.runtime.state_files import set_aside
from ...swarm.types import Span
from ..formats.config import ModelConfig
from ..formats.files.tensor_files import TensorFiles
from ..formats.hf.safetensors_reader import INDEX, SINGLE, LocalShard, read_index, shard_names
from ..formats.hf.tensors import checked_tensors
from ..formats.quantized.source import stored_parts
from ..formats.tensors import needed_tensors
from ..pieces.digest import SMALL_FILES, FileHash, identity_of
from ..pieces.file_hashes import Progress
from ..pieces.hashing import hashed
from ..tokenizer.source import DirectoryTokenizer
from .checkpoint import Checkpoint, check_span, directory_config
from .hub_repo import HubFile, HubRepo, MissingFileError, sha256_of_blob
from .hub_weights import DamagedError, HubWeights


def open_hub_model(
    name: str, *, blocks: Span | None, client: bool, progress: Progress | None, weights: bool = True
) -> Checkpoint:
    """See ``open_checkpoint``. A download that was damaged on this disk is fetched again, once."""
    try:
        return _open(name, blocks, client, progress, weights)
    except DamagedError as error:
        damaged = error
    if (aside := set_aside(damaged.blob)) is None:
        raise damaged
    try:
        checkpoint = _open(name, blocks, client, progress, weights)
    except NetworkError:
        raise damaged from None
    aside.unlink(missing_ok=True)
    return checkpoint


class _HubCheckpoint(Checkpoint):
    """Keeps its store from being evicted until it is closed."""

    def keep(self, weights: HubWeights) -> Checkpoint:
        self._weights = weights
        return self

    def close(self) -> None:
        super().close()
        self._weights.close()


def _open(
    name: str, blocks: Span | None, client: bool, progress: Progress | None, weights: bool
) -> Checkpoint:
    repo = HubRepo(name, progress)
    directory = repo.fetch("config.json").parent
    everything = weights and blocks is None and not client
    if client or everything:
        repo.fetch("tokenizer.json")  # an error that says so where there is none
    small = {file: path for file in SMALL_FILES if (path := repo.fetch_optional(file)) is not None}
    config = directory_config(directory)
    if blocks is not None:
        check_span(blocks, config)
    names = _weight_files(repo, small)
    if SINGLE in names:
        small.pop(INDEX, None)  # as in a directory: it is not read
    held = HubWeights(repo, name, {file: repo.files.get(file, HubFile(file, -1)) for file in names}, progress)

    def files() -> TensorFiles[LocalShard]:
        return TensorFiles(LocalShard(*held.file(file)) for file in names)

    source: TensorFiles[LocalShard] | None = None
    try:
        if everything:
            held.fetch_whole()
        held.fetch_heads()
        source = held.opened(files)
        config, tensors = checked_tensors(config, source, name)
        needed = needed_tensors(config, blocks, client) if weights else []
        stored = (part for each in needed for part in stored_parts(tensors.stored(each), source.manifest))
        if held.fetch(_places(held, source, stored)):
            source.close()
            source = held.opened(files)
            config, tensors = checked_tensors(config, source, name)
        identity = identity_of([*_small_hashes(small, progress), *held.hashes()])
    except BaseException:
        if source is not None:
            source.close()
        held.close()
        raise
    return _HubCheckpoint(name, config, tensors, _HubTokenizer(repo, directory, config), identity).keep(held)


def _weight_files(repo: HubRepo, small: Mapping[str, Path]) -> list[str]:
    """As ``weight_files``, of the hub; where it cannot be asked, of what was fetched."""
    if SINGLE in repo.files:
        return [SINGLE]
    if INDEX in small:
        names = shard_names(read_index(small[INDEX]))
        if not repo.only_local and (missing := [name for name in names if name not in repo.files]):
            raise MissingFileError(
                f"{repo.name} lacks {len(missing)} of its {len(names)} safetensors files: {missing[0]}",
                hint="Its owner has to upload them; take another repository of the model.",
            )
        return names
    if repo.only_local:
        return [SINGLE]
    raise _no_weights(repo)


def _no_weights(repo: HubRepo) -> MissingFileError:
    hint = "Wanted: safetensors files, or a GGUF file. Another repository of the model may have them."
    pickles = [name for name in repo.files if name.endswith((".bin", ".pth", ".pt"))]
    if pickles:
        hint = f"Its weights are a pickle ({pickles[0]}), which may run any program. {hint}"
    return MissingFileError(f"{repo.name} has no file {SINGLE} on the HuggingFace hub", hint=hint)


def _places(
    held: HubWeights, source: TensorFiles[LocalShard], names: Iterator[str]
) -> Iterator[tuple[str, int, int]]:
    for path, offset, length in map(source.place, names):
        yield held.name_of(path), offset, length


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
            raise DamagedError(small[file.name])
    return found
