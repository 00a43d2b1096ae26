"""One repository of the HuggingFace hub: its files by name, whole into huggingface_hub's cache, or in ranges.

``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` work as everywhere in huggingface_hub.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
from huggingface_hub.utils import tqdm as hub_tqdm

from ...swarm.errors import CheckpointError, NetworkError
from ...swarm.runtime.state_files import replace_file
from ..pieces.file_hashes import Progress, check_stopped

logger = logging.getLogger(__name__)

_TIMEOUT = 30.0
"""Seconds to wait for the next bytes of an answer."""
_REACH_TIMEOUT = 10.0
"""Seconds to wait for a first answer."""
_TRIES = 6
"""A range is asked for this many times, where the hub is busy or the connection breaks."""
_PAUSE_S = 0.5
"""Seconds before the second try; twice as many before each further one."""
_MAX_PAUSE_S = 60.0
"""``Retry-After`` is believed up to this many seconds."""
_BUSY = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Status codes of a hub that may answer a later try."""
_MAX_FILES = 100_000
"""A repository with more files is not one of a model."""
START_AGAIN = "Start again; if that does not help, download the model and give its path."
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
"""An ETag that is a SHA-256. Small files have another, which is not the SHA-256 of their content."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """``path``: in the repository. ``size`` -1, ``sha256`` empty: the hub does not tell it."""

    path: str
    size: int
    sha256: bytes = b""


class MissingFileError(CheckpointError):
    """The repository exists, and has no file of this name."""


class HubRepo:
    """A repository at one commit: the one that ``main`` was at when its files were listed.

    ``only_local``: the hub did not answer, so there is what was fetched before, and nothing else. Methods
    block, and may be called from several threads at once.
    """

    def __init__(
        self, name: str, progress: Progress | None = None, sleep: Callable[[float], None] = check_stopped
    ) -> None:
        """``sleep(seconds)``: between two tries."""
        self.name = name
        self._sleep = sleep
        self._progress = progress
        self._etags: dict[str, str] = {}
        # None lets huggingface_hub decide; given here because it reads the variable at import only.
        self._endpoint = os.environ.get("HF_ENDPOINT") or None
        self.only_local = not self._reachable()

    @cached_property
    def commit(self) -> str | None:
        """None where the hub cannot be asked and nothing of it was fetched before."""
        return self._listed[0]

    @cached_property
    def files(self) -> Mapping[str, HubFile]:
        """All files, by path. Where the hub cannot be asked: those of the last commit that are here."""
        return self._listed[1]

    @cached_property
    def _listed(self) -> tuple[str | None, dict[str, HubFile]]:
        if self.only_local:
            return self._listed_here()
        with self._explained("the list of files"):
            api = huggingface_hub.HfApi(endpoint=self._endpoint)
            try:
                info = api.model_info(self.name, files_metadata=True, timeout=_TIMEOUT)
                entries = list(info.siblings or ())[: _MAX_FILES + 1]
                files = {entry.rfilename: _hub_file(entry) for entry in entries}
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise NetworkError(
                    f"the hub's list of the files of {self.name} is garbled: {_first_line(error)}"
                ) from None
        commit = info.sha
        if len(files) > _MAX_FILES or not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise NetworkError(f"the hub's list of the files of {self.name} is garbled")
        with suppress(OSError):  # as huggingface_hub keeps it: what ``main`` was at last
            main = self._cache / "refs" / "main"
            main.parent.mkdir(parents=True, exist_ok=True)
            replace_file(main, commit)
        return commit, files

    @property
    def _cache(self) -> Path:
        return Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{self.name.replace('/', '--')}"

    def _listed_here(self) -> tuple[str | None, dict[str, HubFile]]:
        try:
            commit = (self._cache / "refs" / "main").read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None, {}
        if not _COMMIT.fullmatch(commit):
            return None, {}
        snapshot = self._cache / "snapshots" / commit
        paths = [path for path in snapshot.rglob("*") if path.is_file()][:_MAX_FILES]
        return commit, {
            (name := path.relative_to(snapshot).as_posix()): HubFile(
                name, path.stat().st_size, sha256_of_blob(path)
            )
            for path in paths
        }

    def fetch(self, file: str) -> Path:
        """The file in huggingface_hub's cache, downloaded if it is not there yet."""
        if (path := self.cached(file)) is not None:
            return path
        if self.only_local:
            raise self.not_here(file)
        if file not in self.files:
            raise self._lacks(file)
        options: dict[str, Any] = {"endpoint": self._endpoint}
        if (
            self._progress is not None
            and "tqdm_class" in inspect.signature(huggingface_hub.hf_hub_download).parameters
        ):
            options["tqdm_class"] = _bar(self._progress, file)
        with self._explained(file):
            return Path(huggingface_hub.hf_hub_download(self.name, file, revision=self.commit, **options))

    def fetch_optional(self, file: str) -> Path | None:
        """None where the repository has no such file, or it is not here and the hub cannot be asked."""
        return self.fetch(file) if file in self.files else None

    def cached(self, file: str) -> Path | None:
        """The file where it was downloaded before."""
        with self._explained(file):
            path = huggingface_hub.try_to_load_from_cache(self.name, file, revision=self.commit)
        return Path(path) if isinstance(path, str) else None

    def read_range(self, file: HubFile, start: int, length: int) -> bytes:
        """``length`` bytes of a file from ``start`` on. Asks again where the hub is busy, or the connection
        breaks. NetworkError for any other answer than these bytes of this file."""
        if self.only_local:
            raise self.not_here(file.path)
        for tries in range(_TRIES):
            try:
                with self._explained(file.path):
                    return self._read_range(file, start, length)
            except _BusyError as error:
                busy = error
                logger.info("event=hub_busy file=%r error=%r", file.path, error.message)
            if tries < _TRIES - 1:
                self._sleep(min(max(_PAUSE_S * 2**tries, busy.retry_after), _MAX_PAUSE_S))
        raise NetworkError(busy.message, hint=busy.hint)

    def _read_range(self, file: HubFile, start: int, length: int) -> bytes:
        end = start + length - 1
        where = f"bytes {start}-{end} of {file.path} of {self.name}"
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{end}", "Accept-Encoding": "identity"}
        try:
            with _answer(self._url(file.path), headers) as (response, chunks):
                if response.status_code in _BUSY:
                    raise _BusyError(
                        f"the hub is busy ({response.status_code}): {where}", _retry_after(response)
                    )
                if response.status_code != 206:
                    _raise_for(response)
                    raise NetworkError(
                        f"the hub answers {response.status_code} where parts of files are asked for: {where}",
                        hint="Another HF_ENDPOINT may; or download the model and give its path.",
                    )
                self._check(response, file, f"bytes {start}-{end}/{file.size}", where)
                data = bytearray()
                for chunk in chunks:
                    check_stopped()
                    data += chunk
                    if len(data) > length:
                        break
        except (hub_errors.HfHubHTTPError, NetworkError):
            raise
        except (hub_errors.HTTPError, OSError) as error:  # timeouts, resets, bodies that break off
            if type(error).__name__ == "TooManyRedirects":  # of httpx or of requests
                raise NetworkError(f"the hub leads in a circle: {where}", hint=START_AGAIN) from None
            raise _BusyError(f"the connection to the hub breaks ({_first_line(error)}): {where}") from None
        if len(data) < length:
            raise _BusyError(f"the hub sent {len(data)} bytes of {length}: {where}")
        if len(data) > length:
            raise NetworkError(f"the hub sent more than {length} bytes: {where}", hint=START_AGAIN)
        return bytes(data)

    def _check(self, response: Any, file: HubFile, expected: str, where: str) -> None:
        """NetworkError unless the headers say that these are the right bytes of the right file."""
        chain = (*response.history, response)

        def told(name: str) -> list[str]:
            return [value for answer in chain if (value := answer.headers.get(name))]

        said = response.headers.get("Content-Range", "")
        if said.strip().lower() != expected:
            raise NetworkError(
                f"the hub sent {said[:80] or 'unknown bytes'} instead of {where}", hint=START_AGAIN
            )
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise NetworkError(f"the hub sent an encoding that was not asked for: {where}", hint=START_AGAIN)
        commits = told("X-Repo-Commit")
        hashes = [match[1] for value in told("X-Linked-Etag") if (match := _SHA256.fullmatch(value))]
        etag = response.headers.get("ETag", "")
        if (
            any(commit != self.commit for commit in commits)
            or (file.sha256 and any(told != file.sha256.hex() for told in hashes))
            or (not hashes and self._etags.setdefault(file.path, etag) != etag)
        ):
            raise NetworkError(f"the file has changed on the hub meanwhile: {where}", hint="Start again.")

    def _url(self, file: str) -> str:
        return huggingface_hub.hf_hub_url(self.name, file, revision=self.commit, endpoint=self._endpoint)

    def _reachable(self) -> bool:
        """Whether the hub answers at all. Asked once: huggingface_hub retries each file for half a minute."""
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            return False
        with self._explained("config.json"):
            url = huggingface_hub.hf_hub_url(self.name, "config.json", endpoint=self._endpoint)
        try:
            get_session().head(url, headers=build_hf_headers(), timeout=_REACH_TIMEOUT)
        except (hub_errors.HTTPError, OSError):
            return False
        return True

    def not_here(self, file: str) -> NetworkError:
        return NetworkError(
            f"cannot fetch {file} of {self.name}: the HuggingFace hub cannot be reached, and no local copy "
            "exists",
            hint="Check the connection, or give the path of a .gguf file or a HuggingFace directory.",
        )

    def _lacks(self, file: str) -> MissingFileError:
        return MissingFileError(
            f"{self.name} has no file {file} on the HuggingFace hub",
            hint="Wanted: config.json and safetensors files, or GGUF files.",
        )

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
            raise self.not_here(file) from None
        except hub_errors.EntryNotFoundError:
            raise self._lacks(file) from None
        except (hub_errors.HTTPError, OSError) as error:
            raise NetworkError(
                f"cannot fetch {where}: {_first_line(error)}", hint="Check the connection and try again."
            ) from None


class _BusyError(NetworkError):
    """``retry_after``: seconds that the hub has asked for, or 0."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message, hint="Check the connection and start again: what came is kept.")
        self.retry_after = retry_after


def sha256_of_blob(path: Path) -> bytes:
    """huggingface_hub's cache calls a large file by its SHA-256; empty for another one."""
    match = _SHA256.fullmatch(path.resolve().name)
    return bytes.fromhex(match[1]) if match else b""


@contextmanager
def _answer(url: str, headers: Mapping[str, str]) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """An answer whose body is still to come, by httpx or requests: whichever huggingface_hub uses."""
    session: Any = get_session()
    if callable(getattr(session, "stream", None)):
        with session.stream("GET", url, headers=headers, timeout=_TIMEOUT) as response:
            yield response, response.iter_raw()
    else:
        with session.get(url, headers=headers, timeout=_TIMEOUT, stream=True) as response:
            yield response, response.iter_content(1 << 16)


def _raise_for(response: Any) -> None:
    """huggingface_hub's error for an answer that is one. It may look into the body."""
    if response.status_code >= 400:
        if hasattr(response, "read"):
            response.read()
        hf_raise_for_status(response)


def _retry_after(response: Any) -> float:
    said = response.headers.get("Retry-After", "")
    return float(said) if re.fullmatch(r"[0-9]{1,6}", said) else 0.0


def _hub_file(entry: Any) -> HubFile:
    """ValueError, TypeError, AttributeError for what is no file."""
    sha256 = entry.lfs.sha256 if entry.lfs is not None else ""
    match = _SHA256.fullmatch(sha256) if sha256 else None
    size = entry.size if entry.size is not None else -1
    if type(entry.rfilename) is not str or type(size) is not int:
        raise TypeError("a file without name and size")
    return HubFile(entry.rfilename, size, bytes.fromhex(match[1]) if match else b"")


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
