"""One repository of the HuggingFace hub: its files by name, whole into huggingface_hub's cache, or in ranges.

``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` work as everywhere in huggingface_hub. Whole
files are fetched here and not by huggingface_hub, which takes as many bytes as are sent.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from filelock import FileLock, Timeout
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import get_session

from ...swarm.errors import CheckpointError, NetworkError
from ...swarm.runtime.state_files import replace_file
from ..formats.bounded_json import JsonBounds, parse_json
from ..formats.values.shown import shown
from ..pieces.cache import SPARE_DISK_BYTES
from ..pieces.digest import SMALL_FILES
from ..pieces.file_hashes import Progress, check_stopped
from .hub_answers import (
    START_AGAIN,
    HubAnswer,
    HubBusyError,
    MissingFileError,
    first_line,
    hub_answer,
    hub_headers,
    no_such_model,
)

logger = logging.getLogger(__name__)

_REACH_TIMEOUT = 10.0
"""Seconds to wait for a first answer."""
_TRIES = 6
"""An answer is asked for this many times, where the hub is busy or the connection breaks."""
_PAUSE_S = 0.5
"""Seconds before the second try; twice as many before each further one."""
_MAX_PAUSE_S = 60.0
"""``Retry-After`` is believed up to this many seconds."""
_HEADWAY = 8 << 20
"""A fetch of a whole file that breaks off after so many bytes has tries as at its beginning."""
_TICK_S = 0.2
_MAX_FILES = 100_000
"""A repository with more files is not one of a model."""
_LIST_BOUNDS = JsonBounds(nbytes=64 << 20, values=1 << 20)
_MAX_SIZE = 1 << 50
"""A file has fewer bytes than these, whatever the hub says."""
_MAX_PATH = 1024
"""A file's path has at most this many characters; each name in it at most 255 bytes, as on a disk."""
_MOST_BYTES = dict.fromkeys(SMALL_FILES, 16 << 20) | {
    "tokenizer.json": 128 << 20,
    "model.safetensors.index.json": 64 << 20,
}
"""The bytes of small files; those who read them have the same bounds."""
_HASH = re.compile(r"[0-9a-f]{40}")
"""A commit, or git's name for a file's content."""
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
"""An ETag that is a SHA-256. Small files have another, which is not the SHA-256 of their content."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HubFile:
    """``path``: in the repository. ``size`` -1, ``sha256`` and ``git_hash`` empty: the hub does not tell
    it. ``git_hash``: of a small file's content, as git names it."""

    path: str
    size: int
    sha256: bytes = b""
    git_hash: str = ""


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
        try:
            listing = parse_json(self._retried(self._list), _LIST_BOUNDS)
            commit, files = listing["sha"], _files(listing["siblings"], self.name)
            if type(commit) is not str or not _HASH.fullmatch(commit):
                raise ValueError("it names no commit")
        except (KeyError, TypeError, ValueError) as error:
            raise NetworkError(
                f"the hub's list of the files of {self.name} is garbled: {first_line(error)}",
                hint=START_AGAIN,
            ) from None
        with suppress(OSError):  # as huggingface_hub keeps it: what ``main`` was at last
            main = self._cache / "refs" / "main"
            main.parent.mkdir(parents=True, exist_ok=True)
            replace_file(main, commit)
        return commit, files

    def _list(self) -> bytes:
        endpoint = (self._endpoint or huggingface_hub.constants.ENDPOINT).rstrip("/")
        url = f"{endpoint}/api/models/{self.name}?blobs=true"
        with hub_answer(url, hub_headers(), f"the list of the files of {self.name}") as answer:
            answer.raise_for_status(self.name)
            return b"".join(answer.body(_LIST_BOUNDS.nbytes))

    @property
    def _cache(self) -> Path:
        return Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{self.name.replace('/', '--')}"

    def _listed_here(self) -> tuple[str | None, dict[str, HubFile]]:
        try:
            commit = (self._cache / "refs" / "main").read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None, {}
        if not _HASH.fullmatch(commit):
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
        return self._download(self.files[file])

    def fetch_optional(self, file: str) -> Path | None:
        """None where the repository has no such file, or it is not here and the hub cannot be asked."""
        return self.fetch(file) if file in self.files else None

    def cached(self, file: str) -> Path | None:
        """The file where it was downloaded before."""
        path = huggingface_hub.try_to_load_from_cache(self.name, file, revision=self.commit)
        return Path(path) if isinstance(path, str) else None

    def read_range(self, file: HubFile, start: int, length: int) -> bytes:
        """``length`` bytes of a file from ``start`` on. Asks again where the hub is busy, or the connection
        breaks. NetworkError for any other answer than these bytes of this file."""
        if self.only_local:
            raise self.not_here(file.path)
        return self._retried(partial(self._read_range, file, start, length))

    def _read_range(self, file: HubFile, start: int, length: int) -> bytes:
        data = bytearray()
        with self._asked(file, start, length) as answer:
            for chunk in answer.body(length):
                data += chunk
        if len(data) < length:
            raise HubBusyError(f"the hub sent {len(data)} bytes of {length}: {answer.where}")
        return bytes(data)

    @contextmanager
    def _asked(self, file: HubFile, start: int, length: int, *, whole: bool = False) -> Iterator[HubAnswer]:
        """The answer that has these bytes of this file, or an error. ``whole``: they are all of it."""
        headers = hub_headers()
        where = f"{file.path} of {self.name}"
        if not whole:
            asked = f"bytes {start}-{start + length - 1}"
            headers["Range"] = asked.replace(" ", "=")
            where = f"{asked} of {where}"
        with hub_answer(self._url(file.path), headers, where) as answer:
            answer.raise_for_status(self.name)
            if answer.status != (200 if whole else 206):
                raise NetworkError(
                    f"the hub answers {answer.status} where {'a file is' if whole else 'parts of files are'} "
                    f"asked for: {where}",
                    hint="Another HF_ENDPOINT may; or download the model and give its path.",
                )
            self._check(answer, file, None if whole else f"{asked}/{file.size}")
            yield answer

    def _retried(self, attempt: Callable[[], T]) -> T:
        """What ``attempt`` gives, called again where the hub is busy."""
        for tries in range(_TRIES):
            try:
                return attempt()
            except HubBusyError as error:
                busy = error
                logger.info("event=hub_busy repo=%r error=%r", self.name, error.message)
            if tries < _TRIES - 1:
                self._sleep(min(max(_PAUSE_S * 2**tries, busy.retry_after), _MAX_PAUSE_S))
        raise NetworkError(busy.message, hint=busy.hint)

    def _download(self, file: HubFile) -> Path:
        """As huggingface_hub lays it: the content by its hash in ``blobs``, and a link in ``snapshots``."""
        if file.size < 0:
            raise NetworkError(
                f"the hub does not tell the size of {file.path} of {self.name}",
                hint="Download the model and give its path, or use another HF_ENDPOINT.",
            )
        if file.size > (most := _MOST_BYTES.get(file.path, file.size)):
            raise CheckpointError(
                f"{file.path} of {self.name} has {file.size} bytes on the HuggingFace hub: more than {most}",
                hint="No model needs such a large file; take another repository of the model.",
            )
        blobs = self._cache / "blobs"
        name = file.sha256.hex() or file.git_hash
        part = blobs / f"{name or hashlib.sha256(file.path.encode()).hexdigest()}.part"
        try:
            locks = self._cache.parent / ".locks" / self._cache.name
            for folder in (blobs, locks):
                folder.mkdir(parents=True, exist_ok=True)
            with _locked(locks / f"{part.stem}.lock"):
                blob = blobs / name
                if not (name and blob.is_file() and blob.stat().st_size == file.size):
                    if not file.sha256:  # nothing would say of which file the bytes are
                        part.unlink(missing_ok=True)
                    self._append_all(file, part)
                    blob = blobs / (name or _git_hash(part))
                    part.replace(blob)
                return _linked(blob, self._cache / "snapshots" / str(self.commit) / file.path)
        except OSError as error:
            raise _unwritable(blobs, error) from None

    def _append_all(self, file: HubFile, part: Path) -> None:
        """NetworkError where the connection breaks more often than headway explains; OSError."""
        for _ in range(1 + file.size // _HEADWAY):
            if self._retried(partial(self._append, file, part)):
                return
        raise NetworkError(
            f"the hub sends {file.path} of {self.name} in pieces that are no file", hint=START_AGAIN
        )

    def _append(self, file: HubFile, part: Path) -> bool:
        """Fetch what ``part`` lacks of a file. False if the connection broke after much had come; OSError."""
        with part.open("ab") as written:
            if (came := written.tell()) > file.size:
                written.truncate(came := 0)
            begun, left = came, file.size - came
            if shutil.disk_usage(part.parent).free - SPARE_DISK_BYTES < left:
                raise CheckpointError(
                    f"{file.path} of {self.name} does not fit on the disk of {self._cache}: {left / 1e6:.1f} "
                    f"MB more, and {SPARE_DISK_BYTES // 10**6} MB stay free",
                    hint="Free some space, or set HF_HOME to a folder on another disk.",
                )
            try:
                if left or not file.size:
                    with self._asked(file, came, left, whole=not came) as answer:
                        for chunk in answer.body(left):
                            _write(written, chunk)
                            came += len(chunk)
                            if self._progress is not None:
                                self._progress(came, file.size, f"Fetching {file.path}")
                        if came < file.size:
                            raise HubBusyError(f"the hub sent {came} bytes of {file.size}: {answer.where}")
            except HubBusyError:
                if came - begun < _HEADWAY:
                    raise
                return False
        if file.git_hash and _git_hash(part) != file.git_hash:
            part.unlink()
            raise HubBusyError(f"the hub sent other bytes of {file.path} of {self.name} than it lists")
        return True

    def _check(self, answer: HubAnswer, file: HubFile, expected: str | None) -> None:
        """NetworkError unless the headers say that these are the right bytes of the right file."""

        def told(name: str) -> list[str]:
            return [value for headers in answer.chain if (value := headers.get(name))]

        said = answer.headers.get("Content-Range", "")
        if expected and said.strip().lower() != expected:
            raise NetworkError(
                f"the hub sent {shown(said[:80]) if said else 'unknown bytes'} instead of {answer.where}",
                hint=START_AGAIN,
            )
        commits = told("X-Repo-Commit")
        hashes = [match[1] for value in told("X-Linked-Etag") if (match := _SHA256.fullmatch(value))]
        etag = answer.headers.get("ETag", "")
        if (
            any(commit != self.commit for commit in commits)
            or (file.sha256 and any(told != file.sha256.hex() for told in hashes))
            or (not hashes and self._etags.setdefault(file.path, etag) != etag)
        ):
            raise NetworkError(
                f"the file has changed on the hub meanwhile: {answer.where}", hint="Start again."
            )

    def _url(self, file: str) -> str:
        return huggingface_hub.hf_hub_url(self.name, file, revision=self.commit, endpoint=self._endpoint)

    def _reachable(self) -> bool:
        """Whether the hub answers at all. Asked once: huggingface_hub retries each file for half a minute."""
        try:
            url = huggingface_hub.hf_hub_url(self.name, "config.json", endpoint=self._endpoint)
        except ValueError:  # no repository is called so
            raise no_such_model(self.name) from None
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            return False
        try:
            get_session().head(url, headers=hub_headers(), timeout=_REACH_TIMEOUT)
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


def sha256_of_blob(path: Path) -> bytes:
    """huggingface_hub's cache calls a large file by its SHA-256; empty for another one."""
    match = _SHA256.fullmatch(path.resolve().name)
    return bytes.fromhex(match[1]) if match else b""


def _files(entries: Any, repo: str) -> dict[str, HubFile]:
    """The files of a list, by path; those with names that no file of a model has are left out. KeyError,
    TypeError, ValueError for what is no list of files."""
    if type(entries) is not list or len(entries) > _MAX_FILES:
        raise ValueError(f"it is no list of up to {_MAX_FILES} files")
    files: dict[str, HubFile] = {}
    odd: list[str] = []
    for entry in entries:
        path, size, large, git = entry["rfilename"], entry.get("size"), entry.get("lfs"), entry.get("blobId")
        if type(path) is not str or not (size is None or (type(size) is int and size < _MAX_SIZE)):
            raise TypeError("a file without name and size")
        if not _is_plain(path):
            odd.append(path)
            continue
        match = _SHA256.fullmatch(large["sha256"]) if large is not None else None
        known = git if match is None and type(git) is str and _HASH.fullmatch(git) else ""
        sha256 = bytes.fromhex(match[1]) if match else b""
        files[path] = HubFile(path, -1 if size is None else size, sha256, known)
    if odd:
        logger.warning("event=hub_names_ignored repo=%r files=%d first=%s", repo, len(odd), shown(odd[0]))
    return files


def _is_plain(path: str) -> bool:
    """Whether it names a file below the repository's folder, on every system."""
    return (
        len(path) <= _MAX_PATH
        and path.isprintable()
        and not any(character in path for character in '\\:*?"<>|')
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in path.split("/"))
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time writes a file. HashingStopped while another does."""
    lock = FileLock(path)
    while not lock.is_locked:
        check_stopped()
        with suppress(Timeout):
            lock.acquire(timeout=_TICK_S)
    try:
        yield
    finally:
        lock.release()


def _write(file: Any, data: bytes) -> None:
    """CheckpointError where the disk is full or fails: no fault of the connection."""
    try:
        file.write(data)
    except OSError as error:
        raise _unwritable(Path(file.name), error) from None


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot write {path}: {error.strerror or error}",
        hint="Free some space, or set HF_HOME to a folder that this user can write; what was fetched stays.",
    )


def _git_hash(path: Path) -> str:
    hashed = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            check_stopped()
            hashed.update(chunk)
    return hashed.hexdigest()


def _linked(blob: Path, path: Path) -> Path:
    """``path`` leads to the blob; where the system has no links, it is the blob. OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:
        blob.replace(path)
    return path
