"""The weights of a model of the hub on this disk: whole files in huggingface_hub's cache, and of the others
the pieces that were needed, in a store.

A file of which most is needed, or which is small, is fetched whole. Of any other only the pieces are
fetched that hold the wanted bytes, several requests at once. What came of them stays, and the next fetch
continues from there.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from pathlib import Path
from typing import TypeVar

from ...swarm.errors import CheckpointError, NetworkError
from ...swarm.names import plain_name
from ...swarm.runtime.state_files import set_aside, state_folder
from ...swarm.types import ModelRef
from ..formats.files.mapped_file import AbsentError
from ..pieces.cache import PieceCache
from ..pieces.digest import FileHash
from ..pieces.file_hashes import Progress, check_stopped
from ..pieces.hashing import hashed
from ..pieces.listing import FileListing
from ..pieces.manifest import PieceFile
from ..pieces.store import FilePresence, PieceStore
from .hub_answers import START_AGAIN
from .hub_gguf import gguf_of
from .hub_repo import HubFile, HubRepo, sha256_of_blob
from .stored import ForgedError, IncompleteError, check_whole_files

FIRST_READ = 1 << 18
"""The first bytes of each file that are asked for: most headers of safetensors files fit."""
_SMALL_FILE = 4 << 20
"""A file of up to this many bytes is fetched whole if any of it is needed."""
_MOSTLY = 0.9
"""A file of which this share is needed is fetched whole: other programs find it in the hub's cache."""
_RUN = 8 << 20
"""One request asks for at most this many bytes: so much is lost when a connection breaks."""
_REQUESTS = 6
"""This many requests are open at once: one connection alone may be slower than the line."""
_MAX_UNTOLD = 64 << 20
"""A file of up to this many bytes is fetched only for its SHA-256 if the hub does not tell it."""
_TICK_S = 0.2
_MOST_ROUNDS = 4096
"""An opening may find this many times that bytes are missing: two for the header of each file."""

T = TypeVar("T")


def kept_gguf(repo: HubRepo, choice: str) -> tuple[str, dict[str, HubFile]]:
    """Name and files of a GGUF model of which an earlier run has fetched some. NetworkError."""
    quantization = gguf_of([f"{choice.removesuffix('.gguf')}.gguf"])[0].quantization if choice else ""
    names = [plain_name(f"{repo.name}:{each}") for each in (choice, quantization) if each]
    for model in _cache().models():
        is_it = plain_name(model.name) in names or (not choice and model.name.startswith(f"{repo.name}:"))
        if is_it and (store := _cache().find(model.root)) is not None:
            with store:
                listed = store.manifest.files
            return model.name, {file.name: HubFile(file.name, file.size, file.content) for file in listed}
    raise repo.not_here(choice or "a GGUF file")


def _cache() -> PieceCache:
    """What was fetched in parts. Only the disk bounds it, as it does huggingface_hub's own cache."""
    return PieceCache(state_folder() / "hub", sys.maxsize)


class DamagedError(CheckpointError):
    """``places``: what is to be fetched again: files, which the hub's cache leads to, or a store's folder."""

    def __init__(
        self,
        message: str,
        *places: Path,
        hint: str = "It is downloaded again as soon as the hub can be reached.",
    ) -> None:
        super().__init__(message, hint=hint)
        self.places = tuple(place.resolve() for place in places)


def damaged_download(path: Path) -> DamagedError:
    return DamagedError(f"{path} is damaged: its SHA-256 is not the one that the hub gave", path)


class HubWeights:
    """``files``: the weights by their names in the model's digest. Close it; methods block."""

    def __init__(
        self, repo: HubRepo, model: str, files: Mapping[str, HubFile], progress: Progress | None
    ) -> None:
        """``model``: what the model is called: under this name its store is found without the hub."""
        self._repo = repo
        self._model = model
        self._files = dict(files)
        self._progress = progress
        self._cache = _cache()
        self._whole: dict[str, Path] = {}
        for name, file in self._files.items():
            if file.size == 0:
                raise CheckpointError(
                    f"{file.path} of {repo.name} is empty on the HuggingFace hub",
                    hint="Choose another file, or another repository of the model.",
                )
            if (path := repo.cached(file.path)) is not None:
                self._whole[name] = path
        self._store: PieceStore | None = None

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def opened(self, open_files: Callable[[], T], *, headers: bool = False) -> T:
        """What ``open_files`` gives; what it lacks is fetched, and it is called again. ``headers``: it reads
        those alone, so DamagedError where it cannot, if the hub may have sent other bytes than the file's."""
        for _ in range(_MOST_ROUNDS):
            try:
                return open_files()
            except AbsentError as absent:
                self._fetch_ranges([(absent.name, absent.start, absent.length)])
            except CheckpointError as error:
                if headers and not isinstance(error.__context__, OSError):
                    self._blame(error)
                raise
        raise CheckpointError(f"the weights of {self._model} cannot be opened piece by piece")

    def _blame(self, error: CheckpointError) -> None:
        """DamagedError unless all that was read has the SHA-256 that the hub tells."""
        store = self._store
        self.hashes()
        if store is not None:
            raise DamagedError(error.message, store.folder, hint=error.hint) from None

    def file(self, name: str, head: int = 0) -> tuple[Path, FilePresence | None]:
        """Where a file is, and which bytes of it are there if not all are. ``head``: see ``FilePresence``."""
        if name in self._whole:
            return self._whole[name], None
        store = self._ranges()
        return store.path(name), FilePresence(store, name, head)

    def name_of(self, path: Path) -> str:
        """Which file ``file`` has said is at ``path``."""
        return next(
            (name for name, whole in self._whole.items() if whole == path), path.name.removesuffix(".part")
        )

    def fetch_whole(self) -> None:
        """Fetch all files."""
        for name in self._files.keys() - self._whole.keys():
            self._whole[name] = self._repo.fetch(self._files[name].path)

    def fetch_heads(self) -> None:
        """Fetch the beginnings of all files, at once."""
        if len(self._whole) < len(self._files):
            self._ranges()  # some may be fetched whole for that
            self._fetch_ranges([(name, 0, FIRST_READ) for name in self._files if name not in self._whole])

    def fetch(self, wanted: Iterable[tuple[str, int, int]]) -> bool:
        """Fetch these ``(name, start, length)``; True if some of these files are in another place now."""
        ranges = [each for each in wanted if each[0] not in self._whole]
        before = {name: self.file(name)[0] for name in {each[0] for each in ranges}}
        for name in sorted(self._better_whole(ranges)):
            self._whole[name] = self._repo.fetch(self._files[name].path)
        self._fetch_ranges([each for each in ranges if each[0] not in self._whole])
        return any(self.file(name)[0] != path for name, path in before.items())

    def hashes(self) -> list[FileHash]:
        """Of all files: those that are here whole are read, the others have the SHA-256 that the hub tells.
        DamagedError."""
        here = hashed(self._whole, progress=self._progress)
        for file in here:
            told = sha256_of_blob(self._whole[file.name]) or self._files[file.name].sha256
            if told and told != file.content:
                raise damaged_download(self._whole[file.name])
        if len(here) == len(self._files):
            return here
        others = self._ranges().manifest.files
        return here + [
            FileHash(file.name, file.size, file.content) for file in others if file.name not in self._whole
        ]

    def _better_whole(self, ranges: Sequence[tuple[str, int, int]]) -> set[str]:
        """The files of which most has to come, or something and they are small."""
        if self._repo.only_local or not ranges:
            return set()
        store = self._ranges()
        to_come: Counter[PieceFile] = Counter()
        for piece in {piece for each in ranges for piece in store.manifest.pieces_of(*each)}:
            if not store.has(piece):
                place = store.manifest.place(piece)
                to_come[place.file] += place.length
        return {
            file.name
            for file, length in to_come.items()
            if file.size <= _SMALL_FILE or length >= _MOSTLY * file.size
        }

    def _ranges(self) -> PieceStore:
        """The store for what is not here whole."""
        if self._store is None:
            if self._repo.only_local:
                self._store = self._kept()
            else:
                listing = FileListing.of([self._told(name) for name in self._files])
                ref = ModelRef(self._model, listing.identity.digest, 1)
                self._store = self._cache.open(listing, ref)
            self._check_whole(self._store)
        return self._store

    def _told(self, name: str) -> FileHash:
        """Size and SHA-256 of a file as the hub tells them."""
        file = self._files[name]
        if not (file.sha256 and file.size >= 0) and name not in self._whole:
            if not 0 <= file.size <= _MAX_UNTOLD:
                raise NetworkError(
                    f"the hub does not tell the SHA-256 of {file.path} of {self._repo.name}, which the "
                    "model's digest needs",
                    hint="Download the whole model and give its directory, or use another HF_ENDPOINT.",
                )
            self._whole[name] = self._repo.fetch(file.path)
        if file.sha256 and file.size >= 0:
            return FileHash(name, file.size, file.sha256)
        return hashed({name: self._whole[name]})[0]

    def _kept(self) -> PieceStore:
        """The store of an earlier run."""
        for model in self._cache.models():
            if model.name == self._model and (store := self._cache.find(model.root)) is not None:
                if self._files.keys() <= {file.name for file in store.manifest.files}:
                    return store
                store.close()
        missing = min(file.path for name, file in self._files.items() if name not in self._whole)
        raise self._repo.not_here(missing)

    def _fetch_ranges(self, ranges: Iterable[tuple[str, int, int]]) -> None:
        ranges = list(ranges)
        if not ranges:
            return
        store = self._ranges()
        pieces = {piece for each in ranges for piece in store.manifest.pieces_of(*each)}
        missing = store.missing(sorted(pieces))
        if not missing:
            return
        total = sum(map(store.manifest.size_of, missing))
        self._cache.make_room(store, total)
        store.expect(missing)
        done = 0
        for length in self._come(store, missing):
            done += length
            if self._progress is not None:
                self._progress(done, total, f"Fetching {self._model}")
        store.flush()
        self._check_whole(store)

    def _check_whole(self, store: PieceStore) -> None:
        """Files of which all pieces are here have the SHA-256 that the hub tells, or nothing is used."""
        store.finish_files()
        try:
            check_whole_files(store)
        except IncompleteError:
            pass  # the disk has lost some again: what reads it asks for it
        except ForgedError:
            set_aside(store.folder)
            raise NetworkError(
                f"what the hub sent of {self._model} does not have the SHA-256 that it tells",
                hint="Start again: nothing of it is used.",
            ) from None

    def _come(self, store: PieceStore, missing: list[int]) -> Iterator[int]:
        """Fetch pieces; gives how many bytes have come, each time that some have. The first error ends it."""
        pool = ThreadPoolExecutor(_REQUESTS, thread_name_prefix="hub")
        waiting: set[Future[int]] = set()
        try:
            waiting = {
                pool.submit(copy_context().run, self._fetch_run, store, run) for run in _runs(store, missing)
            }
            while waiting:
                check_stopped()
                came, waiting = wait(waiting, _TICK_S, FIRST_COMPLETED)
                for each in came:
                    yield each.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _fetch_run(self, store: PieceStore, run: list[int]) -> int:
        """Fetch pieces that lie one behind the other in one file."""
        places = [store.manifest.place(piece) for piece in run]
        file = self._files[places[0].file.name]
        length = sum(place.length for place in places)
        data = memoryview(self._repo.read_range(file, places[0].offset, length))
        at = 0
        for piece, place in zip(run, places, strict=True):
            if not store.add(piece, data[at : at + place.length]):
                raise NetworkError(
                    f"the hub sent other bytes of {file.path} of {self._repo.name} than before",
                    hint=START_AGAIN,
                )
            at += place.length
        return length


def _runs(store: PieceStore, pieces: list[int]) -> list[list[int]]:
    """Pieces, in order, as runs of neighbours in one file, of up to _RUN bytes each."""
    manifest = store.manifest
    most = max(1, _RUN // manifest.piece_size)
    runs: list[list[int]] = []
    for piece in pieces:
        last = runs[-1] if runs else []
        if last and last[-1] == piece - 1 and len(last) < most and manifest.place(piece).offset:
            last.append(piece)
        else:
            runs.append([piece])
    return runs
