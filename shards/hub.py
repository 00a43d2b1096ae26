"""Models on the HuggingFace hub: only the files that are needed, and range requests for the rest's headers.

``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` work as everywhere in huggingface_hub.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
from huggingface_hub.utils import tqdm as hub_tqdm

from ..swarm.errors import CheckpointError, NetworkError
from ..swarm.types import Span
from .affine import stored_names
from .checkpoint import Checkpoint, Progress, check_span, directory_config
from .config import ModelConfig
from .hf_tensors import checked_tensors
from .manifest import needed_tensors, with_own_head
from .raw_tensor import RawTensor
from .safetensors_header import StoredTensor, header_length, parse_header
from .safetensors_reader import (
    INDEX,
    SINGLE,
    LocalShard,
    SafetensorsSource,
    ShardFile,
    read_index,
    shard_names,
)

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

_FIRST_READ = 100_000
"""Bytes asked for at first: most headers fit, which saves a round trip."""
_TIMEOUT = 30.0
"""Seconds without an answer to a range request."""
_REACH_TIMEOUT = 10.0
"""Seconds to wait for a first answer."""
_OPTIONAL_CLIENT_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)


def open_hub_model(
    name: str, *, blocks: Span | None, client: bool, progress: Progress | None, weights: bool = True
) -> Checkpoint:
    """See ``open_checkpoint``."""
    repo = HubRepo(name, progress)
    directory = repo.fetch("config.json").parent
    everything = weights and blocks is None and not client
    if client or everything:
        repo.fetch("tokenizer.json")
        for file in _OPTIONAL_CLIENT_FILES:
            repo.fetch_optional(file)
    config = directory_config(directory)
    if blocks is not None:
        check_span(blocks, config)
    config, source = checked_tensors(config, _open_shards(repo, config, blocks, client, weights), name)

    def make_tokenizer() -> Tokenizer:
        from .hf_tokenizer import hf_tokenizer  # here: nodes need no tokenizer

        return hf_tokenizer(directory, config)

    return Checkpoint(name, config, source, make_tokenizer)


class HubRepo:
    """One model repository at one commit: the one that ``main`` was at when its first file was fetched."""

    def __init__(self, name: str, progress: Progress | None = None) -> None:
        self.name = name
        self.commit: str | None = None
        self._progress = progress
        # None lets huggingface_hub decide; given here because it reads the variable at import only.
        self._endpoint = os.environ.get("HF_ENDPOINT") or None
        self._only_local = not self._reachable()

    def fetch(self, file: str) -> Path:
        """The file in the local cache, downloaded if it is not there yet."""
        options: dict[str, Any] = {"endpoint": self._endpoint, "local_files_only": self._only_local}
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
        """None where the repository has no such file. What is known of a commit needs no asking again."""
        known = huggingface_hub.try_to_load_from_cache(self.name, file, revision=self.commit)
        if known is not None:
            return Path(known) if isinstance(known, str) else None
        try:
            return self.fetch(file)
        except _MissingFileError:
            return None

    def cached(self, file: str) -> Path | None:
        """The file where it was downloaded before."""
        path = huggingface_hub.try_to_load_from_cache(self.name, file, revision=self.commit)
        return Path(path) if isinstance(path, str) else None

    def read_range(self, file: str, start: int, length: int) -> tuple[bytes, int]:
        """Up to ``length`` bytes of a file from ``start`` on, and the size of the whole file."""
        url = self._url(file)
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{start + length - 1}"}
        with self._explained(file):
            response = get_session().get(url, headers=headers, timeout=_TIMEOUT)
            hf_raise_for_status(response)
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if response.status_code != 206 or not total.isdigit():
            raise NetworkError(f"the hub does not answer range requests for {file} of {self.name}")
        return response.content, int(total)

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


class _MissingFileError(CheckpointError):
    """The repository exists, and has no file of this name."""


class RemoteShard:
    """A shard of which only the header is here; single bytes can be read, tensors not."""

    local = False

    def __init__(self, repo: HubRepo, file: str) -> None:
        self.where = f"{file} of {repo.name}"
        self._repo = repo
        self._file = file
        first, size = repo.read_range(file, 0, _FIRST_READ)
        length = header_length(first[:8], size, self.where)
        header = first[8 : 8 + length]
        if len(header) < length:
            header, _ = repo.read_range(file, 8, length)
        if len(header) != length:
            raise NetworkError(f"the hub sent {len(header)} bytes of {self.where}, expected {length}")
        self.tensors: Mapping[str, StoredTensor] = parse_header(header, size, self.where)

    def tensor(self, name: str) -> RawTensor:
        raise CheckpointError(f"tensor {name} is in {self.where}, which was not fetched")

    def read(self, offset: int, length: int) -> bytes:
        data, _ = self._repo.read_range(self._file, offset, length)
        if len(data) != length:
            raise NetworkError(f"the hub sent {len(data)} bytes of {self.where}, expected {length}")
        return data

    def release(self) -> None: ...

    def close(self) -> None: ...


def _open_shards(
    repo: HubRepo, config: ModelConfig, blocks: Span | None, client: bool, weights: bool
) -> SafetensorsSource:
    index = repo.fetch_optional(INDEX)
    if index is None:
        path = repo.fetch(SINGLE) if weights else repo.cached(SINGLE)
        return SafetensorsSource([RemoteShard(repo, SINGLE) if path is None else LocalShard(path)])
    weight_map = read_index(index)
    needed = needed_tensors(with_own_head(config, weight_map), blocks, client) if weights else []
    wanted = {weight_map[part] for name in needed for part in stored_names(name) if part in weight_map}

    def open_shard(file: str) -> ShardFile:
        path = repo.fetch(file) if file in wanted else repo.cached(file)
        return RemoteShard(repo, file) if path is None else LocalShard(path)

    return SafetensorsSource(map(open_shard, shard_names(weight_map)))


def _bar(progress: Progress, file: str) -> type:
    """A progress bar class for huggingface_hub that draws nothing and calls ``progress``."""

    class Bar(hub_tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._done = int(kwargs.get("initial") or 0)
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> None:
            self._done += int(n or 0)
            progress(self._done, int(self.total or 0), file)

    return Bar


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
