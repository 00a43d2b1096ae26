"""Models on the HuggingFace hub: only the files that are needed, and range requests for the rest's headers.

The hub tells the SHA-256 of a large file with every answer about it, so the model's digest is known without
the files that are not needed. Those that are must have the SHA-256 that the hub has told.

``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` work as everywhere in huggingface_hub.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
from huggingface_hub.utils import tqdm as hub_tqdm

from ...swarm.errors import CheckpointError, NetworkError
from ...swarm.runtime.state_files import set_aside
from ...swarm.types import Span
from ..formats.config import ModelConfig
from ..formats.files.tensor_files import StoredTensor, TensorFile, TensorFiles
from ..formats.hf.safetensors_header import header_length, parse_header
from ..formats.hf.safetensors_reader import (
    INDEX,
    SINGLE,
    LocalShard,
    read_index,
    shard_names,
)
from ..formats.hf.tensors import checked_tensors, stored_parts, stored_places
from ..formats.raw_tensor import RawTensor
from ..formats.tensors import needed_tensors
from ..pieces.digest import SMALL_FILES, FileHash, ModelIdentity, identity_of
from ..pieces.file_hashes import Progress
from ..pieces.hashing import hashed
from ..tokenizer.source import DirectoryTokenizer
from .checkpoint import Checkpoint, check_span, directory_config

_FIRST_READ = 100_000
"""The first request asks for this many bytes: most headers fit, which saves a round trip."""
_TIMEOUT = 30.0
"""Seconds to wait for an answer to a range request."""
_REACH_TIMEOUT = 10.0
"""Seconds to wait for a first answer."""
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
"""An ETag that is a SHA-256. Small files have another, which is not the SHA-256 of their content."""
_MAX_UNTOLD = 64 << 20
"""A file of up to this many bytes is fetched only for its SHA-256 if the hub does not tell it."""


def open_hub_model(
    name: str, *, blocks: Span | None, client: bool, progress: Progress | None, weights: bool = True
) -> Checkpoint:
    """See ``open_checkpoint``. A download that was damaged on this disk is fetched again, once."""
    try:
        return _open(name, blocks, client, progress, weights)
    except _DamagedError as error:
        damaged = error
    if (aside := set_aside(damaged.blob)) is None:
        raise damaged
    try:
        checkpoint = _open(name, blocks, client, progress, weights)
    except NetworkError:
        raise damaged from None
    aside.unlink(missing_ok=True)
    return checkpoint


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
    if INDEX in small and repo.has(SINGLE):
        del small[INDEX]  # as in a directory: it is not read
    shards = _open_shards(repo, small.get(INDEX), config, blocks, client, weights)
    config, source = checked_tensors(config, TensorFiles(shards.values()), name)
    try:
        identity = _identity(small, shards, progress)
    except BaseException:
        source.close()
        raise
    return Checkpoint(name, config, source, _HubTokenizer(repo, directory, config), identity)


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


def _identity(
    small: Mapping[str, Path], shards: Mapping[str, TensorFile], progress: Progress | None
) -> ModelIdentity:
    """The identity: local files are read, the others have the SHA-256 that the hub tells."""
    told = [shard.hash for shard in shards.values() if isinstance(shard, RemoteShard)]
    local = {name: Path(shard.where) for name, shard in shards.items() if isinstance(shard, LocalShard)}
    files = {**small, **local}
    here = hashed(files, progress=progress)
    for file in here:
        blob = files[file.name].resolve().name  # the hub's cache calls a large file by its SHA-256
        if _SHA256.fullmatch(blob) and blob != file.content.hex():
            raise _DamagedError(files[file.name])
    return identity_of([*here, *told])


class HubRepo:
    """One model repository at one commit: the one that ``main`` was at when its first file was fetched.

    ``only_local``: the hub did not answer, so there is what was fetched before, and nothing else."""

    def __init__(self, name: str, progress: Progress | None = None) -> None:
        self.name = name
        self.commit: str | None = None
        self._progress = progress
        # None lets huggingface_hub decide; given here because it reads the variable at import only.
        self._endpoint = os.environ.get("HF_ENDPOINT") or None
        self.only_local = not self._reachable()

    def fetch(self, file: str) -> Path:
        """The file in the local cache, downloaded if it is not there yet."""
        options: dict[str, Any] = {"endpoint": self._endpoint, "local_files_only": self.only_local}
        if (
            self._progress is not None
            and "tqdm_class" in inspect.signature(huggingface_hub.hf_hub_download).parameters
        ):
            options["tqdm_class"] = _bar(self._progress, file)
        with self._explained(file):
            path = Path(huggingface_hub.hf_hub_download(self.name, file, revision=self.commit, **options))
        if self.commit is None and path.parent.parent.name == "snapshots":
            self.commit = path.parent.name
        return path

    def _url(self, file: str) -> str:
        return huggingface_hub.hf_hub_url(self.name, file, revision=self.commit, endpoint=self._endpoint)

    def _reachable(self) -> bool:
        """Whether the hub answers at all. Asked once: huggingface_hub retries each file for half a minute."""
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            return False
        with self._explained("config.json"):
            url = self._url("config.json")
        try:
            get_session().head(url, headers=build_hf_headers(), timeout=_REACH_TIMEOUT)
        except (hub_errors.HTTPError, OSError):
            return False
        return True

    def fetch_optional(self, file: str) -> Path | None:
        """None where the repository has no such file, or it is not here and the hub cannot be asked. What is
        known of a commit needs no asking again."""
        known = huggingface_hub.try_to_load_from_cache(self.name, file, revision=self.commit)
        if known is not None or self.only_local:
            return Path(known) if isinstance(known, str) else None
        try:
            return self.fetch(file)
        except _MissingFileError:
            return None

    def cached(self, file: str) -> Path | None:
        """The file where it was downloaded before."""
        path = huggingface_hub.try_to_load_from_cache(self.name, file, revision=self.commit)
        return Path(path) if isinstance(path, str) else None

    def has(self, file: str) -> bool:
        """Whether the repository has such a file. Where the hub cannot be asked: whether it is here."""
        is_here = self.cached(file) is not None
        if is_here or self.only_local:
            return is_here
        try:
            with self._explained(file):
                huggingface_hub.get_hf_file_metadata(self._url(file))
        except _MissingFileError:
            return False
        return True

    def read_range(self, file: str, start: int, length: int) -> HubRange:
        """Up to ``length`` bytes of a file from ``start`` on."""
        url = self._url(file)
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{start + length - 1}"}
        with self._explained(file):
            response = get_session().get(url, headers=headers, timeout=_TIMEOUT)
            hf_raise_for_status(response)
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if response.status_code != 206 or not (total.isdecimal() and len(total) < 20):
            raise NetworkError(f"the hub does not answer range requests for {file} of {self.name}")
        told = (
            _SHA256.fullmatch(answer.headers.get("X-Linked-Etag", ""))
            for answer in (*response.history, response)
        )
        sha256 = next((match[1] for match in told if match), "")
        return HubRange(response.content, int(total), bytes.fromhex(sha256))

    @contextmanager
    def _explained(self, file: str) -> Iterator[None]:
        """huggingface_hub's errors as ours. The order matters: some of them are subclasses of others."""
        where = f"{file} of {self.name}"
        try:
            yield
        except hub_errors.GatedRepoError:
            raise CheckpointError(
                f"{self.name} is gated on the HuggingFace hub",
                hint="Accept its terms on its page, then set HF_TOKEN or run `hf auth login`.",
            ) from None
        except (hub_errors.RepositoryNotFoundError, hub_errors.HFValidationError):
            raise CheckpointError(
                f"there is no model {self.name}, neither here as a file nor on the HuggingFace hub",
                hint="Check the name; for a private model set HF_TOKEN.",
            ) from None
        except (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled):
            raise NetworkError(
                f"cannot fetch {where}: the HuggingFace hub cannot be reached, and no local copy exists",
                hint="Check the connection, or give the path of a .gguf file or a HuggingFace directory.",
            ) from None
        except hub_errors.EntryNotFoundError:
            raise _MissingFileError(
                f"{self.name} has no file {file} on the HuggingFace hub",
                hint="Wanted: config.json and safetensors files. Download a .gguf file and give its path.",
            ) from None
        except (hub_errors.HTTPError, OSError) as error:
            raise NetworkError(
                f"cannot fetch {where}: {_first_line(error)}", hint="Check the connection and try again."
            ) from None


class _DamagedError(CheckpointError):
    """``blob``: the file itself, which the cache's snapshots lead to."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is damaged: its SHA-256 is not the one that the hub gave",
            hint="It is downloaded again as soon as the hub can be reached.",
        )
        self.blob = path.resolve()


class _MissingFileError(CheckpointError):
    """The repository exists, and has no file of this name."""


class HubRange(NamedTuple):
    """Bytes of a file. ``size`` and ``sha256``: of the whole file; the latter is empty where the hub does not
    tell it."""

    data: bytes
    size: int
    sha256: bytes


class RemoteShard:
    """A shard of which only the header is here, and its ``hash`` as the hub tells it."""

    local = False

    def __init__(self, repo: HubRepo, file: str, first: HubRange) -> None:
        """``first``: the file's first _FIRST_READ bytes, or all of a shorter file."""
        self.where = f"{file} of {repo.name}"
        self.hash = FileHash(file, first.size, first.sha256)
        length = header_length(first.data[:8], first.size, self.where)
        header = first.data[8 : 8 + length]
        if len(header) < length:
            header = repo.read_range(file, 8, length).data
        if len(header) != length:
            raise NetworkError(f"the hub sent {len(header)} bytes of {self.where}, expected {length}")
        self.tensors: Mapping[str, StoredTensor] = parse_header(header, first.size, self.where)

    def tensor(self, name: str) -> RawTensor:
        raise CheckpointError(f"tensor {name} is in {self.where}, which was not fetched")

    def release(self) -> None: ...

    def close(self) -> None: ...


def _open_shards(
    repo: HubRepo, index: Path | None, config: ModelConfig, blocks: Span | None, client: bool, weights: bool
) -> dict[str, TensorFile]:
    """The shards by file. Those with needed tensors, and those fetched before, are local."""
    if index is None:
        return {SINGLE: _open_shard(repo, SINGLE, weights)}
    weight_map = read_index(index)
    config, found = stored_places(config, weight_map)
    needed = needed_tensors(config, blocks, client) if weights else []
    wanted = {weight_map[part] for name in needed for part in stored_parts(found[name].stored, weight_map)}
    shards: dict[str, TensorFile] = {}
    try:
        for file in shard_names(weight_map):
            shards[file] = _open_shard(repo, file, file in wanted)
    except BaseException:
        for shard in shards.values():
            shard.close()
        raise
    return shards


def _open_shard(repo: HubRepo, file: str, is_wanted: bool) -> TensorFile:
    path = repo.fetch(file) if is_wanted else repo.cached(file)
    if path is None:
        first = repo.read_range(file, 0, _FIRST_READ)
        if first.sha256:
            return RemoteShard(repo, file, first)
        if first.size > _MAX_UNTOLD:
            raise NetworkError(
                f"the hub does not tell the SHA-256 of {file} of {repo.name}, which its digest needs",
                hint="Download the whole model and give its directory, or use another HF_ENDPOINT.",
            )
        path = repo.fetch(file)
    return LocalShard(path)


def _bar(progress: Progress, file: str) -> type:
    """A progress bar class for huggingface_hub that draws nothing and calls ``progress``."""

    class Bar(hub_tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._done = int(kwargs.get("initial") or 0)
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> None:
            self._done += int(n or 0)
            progress(self._done, int(self.total or 0), f"Fetching {file}")

    return Bar


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
