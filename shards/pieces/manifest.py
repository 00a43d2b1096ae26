"""A model's files as pieces that every peer can check.

A piece is ``piece_size`` bytes of one file (the file's last piece may be shorter); pieces are numbered
through all files, which are sorted by name. Encoded, a manifest is this msgpack array, and its SHA-256 is the
*root* that names the exact content of every byte:

    ["swarm-node pieces 3", piece_size, [[name, size, head, hashes, content], …]]

``head``: how many bytes from the start of the file every opening reads (the header of a weights file, all of
any other). ``hashes``: the SHA-256 of each piece, one after another. ``content``: the file's SHA-256, which
the model's digest takes, so that a manifest says of which model it is. Of a file of one piece it is that of
the piece; of another it is checked once all of the file is here. There is one encoding of a manifest, and any
other is refused. A GGUF model is one file or several, and no other beside them (``digest.gguf_names``).
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgpack

from ...swarm.errors import CheckpointError, RemoteProtocolError
from .digest import SMALL_FILES, FileHash, ModelIdentity, gguf_names, identity_of, is_weights

FORMAT = "swarm-node pieces 3"

MAX_FILES = 512
MAX_PIECES = 1 << 17
"""A model has at most this many pieces: 1 TiB in the largest ones."""
MAX_HEADS = 512 * 1024 * 1024
"""All files' heads together have at most this many bytes. They are fetched before anything is known of the
model."""
MIN_PIECE, MAX_PIECE = 16 * 1024, 8 * 1024 * 1024
USUAL_PIECE = 256 * 1024
"""Bytes of a usual piece: small enough that the ends of a span's tensors bring little that is not needed.
Hashes are 1/8000 of it."""
_FEW_PIECES = 1 << 14
"""Above this many pieces, pieces get larger, so that a manifest stays below half a megabyte up to 128 GiB."""
MAX_MANIFEST = 6 * 1024 * 1024
"""A manifest has at most this many bytes: the hashes of MAX_PIECES, and names."""
_MAX_NAME = 256
"""A text in a manifest has at most this many bytes: any allowed name fits."""
_WEIGHTS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.safetensors")
_GGUF_NAME = re.compile(r"model(-\d{5}-of-\d{5})?\.gguf", re.ASCII)
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)\..*", re.IGNORECASE)  # devices, on Windows


@dataclass(frozen=True, slots=True)
class PieceFile:
    """``hashes``: 32 bytes a piece. ``content``: 32 bytes."""

    name: str
    size: int
    head: int
    hashes: bytes
    content: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """Where a piece lies: ``length`` bytes from ``offset`` of a file."""

    file: PieceFile
    offset: int
    length: int


class PieceManifest:
    """Raises CheckpointError for files that are not a model, or beyond the bounds above."""

    def __init__(self, piece_size: int, files: tuple[PieceFile, ...]) -> None:
        self.piece_size = piece_size
        self.files = files
        if problem := self._problem():
            raise CheckpointError(f"this is not a list of a model's pieces: {problem}")
        self._counts = [-(-file.size // piece_size) for file in files]
        self._ends = list(accumulate(self._counts))
        self._by_name = {file.name: number for number, file in enumerate(files)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PieceManifest) and self.root == other.root

    def __hash__(self) -> int:
        return hash(self.root)

    @property
    def n_pieces(self) -> int:
        return self._ends[-1]

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @cached_property
    def encoded(self) -> bytes:
        files = [[file.name, file.size, file.head, file.hashes, file.content] for file in self.files]
        encoded: bytes = msgpack.packb([FORMAT, self.piece_size, files])
        return encoded

    @cached_property
    def root(self) -> str:
        """64 lowercase hex characters."""
        return hashlib.sha256(self.encoded).hexdigest()

    @cached_property
    def identity(self) -> ModelIdentity:
        """The identity of the model that these files are."""
        return identity_of(FileHash(file.name, file.size, file.content) for file in self.files)

    @property
    def is_gguf(self) -> bool:
        """True for GGUF files, False for a HuggingFace directory."""
        return self.files[0].name.endswith(".gguf")

    def has_file(self, name: str) -> bool:
        return name in self._by_name

    def file(self, name: str) -> PieceFile:
        return self.files[self._by_name[name]]

    def place(self, piece: int) -> Place:
        number = bisect_right(self._ends, piece)
        file = self.files[number]
        offset = (piece - self._ends[number] + self._counts[number]) * self.piece_size
        return Place(file, offset, min(self.piece_size, file.size - offset))

    def pieces_of(self, name: str, start: int = 0, length: int | None = None) -> range:
        """The pieces that hold ``length`` bytes (None: all) from ``start`` of a file."""
        number = self._by_name[name]
        file = self.files[number]
        end = file.size if length is None else min(start + length, file.size)
        first = self._ends[number] - self._counts[number]
        if start >= end:
            return range(first, first)
        return range(first + start // self.piece_size, first - (-end // self.piece_size))

    def size_of(self, piece: int) -> int:
        return self.place(piece).length

    def is_right(self, piece: int, data: bytes | bytearray | memoryview) -> bool:
        """Whether these are the bytes of the piece."""
        place = self.place(piece)
        at = place.offset // self.piece_size * 32
        return len(data) == place.length and hashlib.sha256(data).digest() == place.file.hashes[at : at + 32]

    def accept(self, piece: int, data: bytes | bytearray | memoryview) -> bool:
        """``is_right``, of bytes that have just come."""
        return self.is_right(piece, data)

    def load(self, folder: Path) -> None:
        """A store's folder is about to be read: a manifest knows all hashes without it."""

    def save(self, folder: Path) -> None:
        """A store's claims are about to be written: a manifest has nothing to add."""

    def _problem(self) -> str:
        """What is wrong; empty where nothing is."""
        if problem := file_problem(self.piece_size, self.files):
            return problem
        for file in self.files:
            if file.head < file.size and not is_weights(file.name):
                return f"{file.name} is not all head"
            if len(file.hashes) != -(-file.size // self.piece_size) * 32:
                return f"{file.name} has another number of hashes than of pieces"
            if len(file.hashes) == 32 and file.content != file.hashes:
                return f"{file.name} has a content hash that does not match its pieces"
        if sum(file.head for file in self.files) > MAX_HEADS:
            return f"heads of more than {MAX_HEADS} bytes"
        is_whole = self.is_gguf or any(file.name == "config.json" for file in self.files)
        return "" if is_whole else "no config.json"

    @classmethod
    def parse(cls, encoded: bytes | bytearray | memoryview, root: str) -> PieceManifest:
        """RemoteProtocolError unless these bytes are the manifest that ``root`` names, within the bounds."""
        if len(encoded) > MAX_MANIFEST:
            raise RemoteProtocolError(f"a manifest of {len(encoded)} bytes, at most {MAX_MANIFEST}")
        if hashlib.sha256(encoded).hexdigest() != root:
            raise RemoteProtocolError("a manifest that is not the one asked for")
        try:
            document = msgpack.unpackb(
                encoded,
                max_array_len=MAX_FILES,
                max_map_len=0,
                max_ext_len=0,
                max_bin_len=32 * MAX_PIECES,
                max_str_len=_MAX_NAME,
                list_hook=_ArrayCounter(),
            )
            form, piece_size, files = document
            if form != FORMAT or type(files) is not list:
                raise ValueError("another format")
            manifest = cls(piece_size, tuple(_file(entry) for entry in files))
        except (ValueError, TypeError, CheckpointError) as error:
            raise RemoteProtocolError(f"a manifest that is malformed: {str(error)[:200]}") from None
        if manifest.encoded != bytes(encoded):
            raise RemoteProtocolError("a manifest that is not in its canonical encoding")
        return manifest


class _ArrayCounter:
    """Refuses more arrays than a manifest has: an empty one takes 60 times its byte."""

    def __init__(self) -> None:
        self._left = MAX_FILES + 2

    def __call__(self, array: list[Any]) -> list[Any]:
        self._left -= 1
        if self._left < 0:
            raise ValueError("too many arrays")
        return array


def piece_size_for(total_bytes: int) -> int:
    """The piece size of a model of ``total_bytes``: the same for every peer that lists its files."""
    size = USUAL_PIECE
    while size < MAX_PIECE and total_bytes > size * _FEW_PIECES:
        size *= 2
    return size


def _file(entry: Any) -> PieceFile:
    if type(entry) is not list or [type(item) for item in entry] != [str, int, int, bytes, bytes]:
        raise ValueError("a file without name, size, head, hashes and content")
    return PieceFile(*entry)


def file_problem(piece_size: Any, files: tuple[PieceFile, ...]) -> str:
    """What is wrong with names, sizes and number of files in pieces; empty where nothing is."""
    if type(piece_size) is not int or not MIN_PIECE <= piece_size <= MAX_PIECE or piece_size.bit_count() != 1:
        return f"pieces of {piece_size!r} bytes"
    if not 0 < len(files) <= MAX_FILES:
        return f"{len(files)} files"
    names = [file.name for file in files]
    if names != sorted(names) or len({name.casefold() for name in names}) != len(names):
        return "files out of order, or twice"
    for file in files:
        if not _may_be_called(file.name):
            return f"a file called {file.name[:60]!a}"
        if not 0 < file.size <= MAX_PIECES * MAX_PIECE or not 0 <= file.head <= file.size:
            return f"{file.name} has {file.size} bytes, {file.head} of them its head"
        if len(file.content) != 32:
            return f"{file.name} has a content hash of {len(file.content)} bytes"
    if sum(-(-file.size // piece_size) for file in files) > MAX_PIECES:
        return f"more than {MAX_PIECES} pieces"
    if any(name.endswith(".gguf") for name in names):
        return "" if names == gguf_names(len(names)) else "it names other files than one GGUF model has"
    return "" if any(name.endswith(".safetensors") for name in names) else "no weights"


def _may_be_called(name: str) -> bool:
    """Only plain names of files that a model has: they become files on the disk of each peer that fetches
    them."""
    if name in SMALL_FILES or _GGUF_NAME.fullmatch(name):
        return True
    return _WEIGHTS_NAME.fullmatch(name) is not None and ".." not in name and not _RESERVED.fullmatch(name)
