"""A model of which only some pieces are here, as a Checkpoint; and which pieces are needed for what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...swarm.errors import CheckpointError
from ...swarm.types import Span
from ..formats.files.mapped_file import AbsentError
from ..formats.files.tensor_files import TensorFiles
from ..formats.gguf.reader import GGUFFile, GGUFSource
from ..formats.gguf.tensors import gguf_tensors
from ..formats.hf.safetensors_reader import LocalShard
from ..formats.hf.tensors import checked_tensors
from ..formats.quantized.source import stored_parts
from ..formats.tensors import needed_tensors, next_names
from ..pieces.digest import CLIENT_FILES, is_weights
from ..pieces.hashing import hashed
from ..pieces.store import FILES, PART, FilePresence, PieceStore
from ..tokenizer.source import DirectoryTokenizer, GGUFTokenizer, TokenizerSource
from .checkpoint import Checkpoint, directory_config

if TYPE_CHECKING:
    from ..tokenizer.tokenizer import Tokenizer


class IncompleteError(CheckpointError):
    """A model cannot be opened before ``pieces`` of it are here; after them, others may be missing.

    ``ref`` and ``root`` say what to fetch; ``damaged`` pieces were here and wrong."""

    def __init__(self, store: PieceStore, pieces: list[int]) -> None:
        self.damaged = store.damaged
        damaged = f", {len(self.damaged)} of them damaged" if self.damaged else ""
        super().__init__(
            f"{counted(len(pieces))} of {store.model.name} not on this disk{damaged}",
            hint="Start the model by its name: they are fetched while peers share it.",
        )
        self.pieces = pieces
        self.ref, self.root = store.model, store.manifest.root


class ForgedError(CheckpointError):
    """All pieces match their list, but the list is of another file than it claims."""


class StoredCheckpoint(Checkpoint):
    """Its identity is its piece manifest's. Keeps its store from being evicted until it is closed."""

    def __init__(self, store: PieceStore) -> None:
        manifest, name = store.manifest, store.model.name
        self._store = store
        _require(store, opening_pieces(store))
        store.finish_files()  # a crash may have come between the last piece of a file and its name
        check_whole_files(store)
        tokenizer: TokenizerSource
        files = self._stored_files = _opened(store)
        try:
            if isinstance(files, GGUFSource):
                tokenizer = GGUFTokenizer(files.header)
                config, self._tensors = gguf_tensors(files)
            else:
                tokenizer = _StoredTokenizer(store)
                config, self._tensors = checked_tensors(directory_config(store.folder / FILES), files, name)
        except BaseException:
            files.close()
            raise
        super().__init__(name, config, self._tensors, tokenizer, manifest.identity, manifest.root)

    def close(self) -> None:
        super().close()
        self._store.close()

    def _pieces(self, stored: str) -> list[int]:
        """The pieces that hold what the files call ``stored``, which may be several tensors."""
        parts = stored_parts(stored, self._stored_files.manifest)
        pieces: list[int] = []
        for path, offset, size in map(self._stored_files.place, parts):
            pieces += self._store.manifest.pieces_of(path.name.removesuffix(PART), offset, size)
        return pieces

    def needed(self, blocks: Span | None, client: bool) -> list[int]:
        """The pieces that a node of ``blocks``, or a client, reads, in the file's order."""
        manifest = self._store.manifest
        pieces: list[int] = []
        names = needed_tensors(self.config, blocks, client) if blocks or client else ()
        for stored in dict.fromkeys(self._tensors.stored(name) for name in names if self.has(name)):
            pieces += self._pieces(stored)
        if client:
            for name in CLIENT_FILES:
                pieces += manifest.pieces_of(name) if manifest.has_file(name) else ()
        return sorted(set(pieces))

    def next_pieces(self, most: int) -> list[int]:
        """The same for the first block that guesses further tokens, where it is at most ``most`` bytes."""
        names = self._tensors.next_stored(next_names(self.config), most)
        return sorted({piece for name in names for piece in self._pieces(name)})


def open_stored(folder: Path, blocks: Span | None = None, client: bool = False) -> StoredCheckpoint:
    """IncompleteError where what every opening reads, or what a node of ``blocks`` or a client needs, is not
    all here, and right; CheckpointError. Hashes all of that which this process has not hashed yet."""
    store = PieceStore(folder)
    checkpoint: StoredCheckpoint | None = None
    try:
        checkpoint = StoredCheckpoint(store)
        _require(store, checkpoint.needed(blocks, client))
        return checkpoint
    except AbsentError as absent:  # something small that only a header tells of
        pieces = store.manifest.pieces_of(absent.name, absent.start, absent.length)
        store.close()
        raise IncompleteError(store, list(pieces)) from None
    except BaseException:
        (checkpoint or store).close()
        raise


def counted(n_pieces: int) -> str:
    return "1 piece" if n_pieces == 1 else f"{n_pieces} pieces"


def opening_pieces(store: PieceStore) -> list[int]:
    """The headers of all files: what every opening reads."""
    pieces: list[int] = []
    for file in store.manifest.files:
        if file.name not in CLIENT_FILES:
            pieces += store.manifest.pieces_of(file.name, 0, file.head)
    return pieces


def check_whole_files(store: PieceStore) -> None:
    """ForgedError unless each file that is here whole has the content that the model's digest knows of it;
    IncompleteError where that is for damage on this disk.

    Pieces prove only that they are in the list that a peer announced. For a file of one piece the digest
    proves the list. Blocks while files are read that were not hashed while they came, nor are remembered.
    """
    whole = {
        file.name: path
        for file in store.manifest.files
        if len(store.manifest.pieces_of(file.name)) > 1
        and (path := store.path(file.name)).name == file.name
        and store.content(file.name) != file.content
    }
    for found in hashed(whole):
        if found.content != store.manifest.file(found.name).content:
            store.forget_checks(found.name)
            _require(store, list(store.manifest.pieces_of(found.name)))
            raise _forged(
                f"{found.name} of {store.model.name} is not the file that the model's digest names, "
                f"though each of its pieces is in the list {store.manifest.root[:12]}"
            )


def _opened(store: PieceStore) -> TensorFiles[Any]:
    """The files with tensors. ForgedError for headers that cannot be read, as no honest peer has loaded such;
    and for a list with another length of a header: it has another root, though it is for the same files."""
    names = [file.name for file in store.manifest.files if is_weights(file.name)]
    there = ((store.path(name), FilePresence(store, name)) for name in names)
    of_list = f"the list {store.manifest.root[:12]} of {store.model.name}"
    files: TensorFiles[Any]
    try:
        if store.manifest.is_gguf:
            files = GGUFSource(GGUFFile(*file) for file in there)
        else:
            files = TensorFiles(LocalShard(*file) for file in there)
    except AbsentError:
        raise
    except CheckpointError as error:
        raise _forged(f"{of_list} leads to files that cannot be read: {error.message}") from None
    for name, file in zip(names, files.files, strict=True):
        if (said := store.manifest.file(name).head) != file.head:
            files.close()
            raise _forged(f"{of_list} says that the header of {name} has {said} bytes; it has {file.head}")
    return files


def _forged(message: str) -> ForgedError:
    return ForgedError(
        message, hint="A peer that announced that list lies. Give the path of a local copy, or another root."
    )


def _require(store: PieceStore, pieces: list[int]) -> None:
    if missing := store.missing(pieces):
        raise IncompleteError(store, missing)


class _StoredTokenizer:
    """A ``TokenizerSource``: of a HuggingFace directory whose files may not be here yet."""

    def __init__(self, store: PieceStore) -> None:
        self._store = store

    def check(self) -> None:
        if not self._store.manifest.has_file("tokenizer.json"):
            raise CheckpointError(
                f"{self._store.model} has no tokenizer.json, so no client can open it by its name",
                hint="Its nodes have to add that file. That gives the model another digest on all of them.",
            )

    def build(self) -> Tokenizer:
        self.check()
        store = self._store
        for name in CLIENT_FILES:
            if store.manifest.has_file(name):
                store.require(name, 0, store.manifest.file(name).size)
        check_whole_files(store)  # more are whole than when the model was opened
        folder = store.folder / FILES
        return DirectoryTokenizer(folder, directory_config(folder)).build()
