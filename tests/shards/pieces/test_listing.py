"""Files whose pieces have no known hashes before they come."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgpack
import pytest

from swarm_node.shards.pieces.cache import PieceCache
from swarm_node.shards.pieces.digest import FileHash
from swarm_node.shards.pieces.listing import FileListing, parse_list
from swarm_node.shards.pieces.store import PieceStore
from swarm_node.swarm.errors import CheckpointError, RemoteProtocolError
from swarm_node.swarm.types import ModelRef

SIZE = 16 * 1024
DATA = bytes(range(256)) * 160  # two pieces and a half
SMALL = b"small" * 100
REF = ModelRef("owner/tiny", "ab" * 32, 1)


def told(name: str, data: bytes) -> FileHash:
    return FileHash(name, len(data), hashlib.sha256(data).digest())


def listing() -> FileListing:
    return FileListing(SIZE, [told("a.safetensors", DATA), told("b.safetensors", SMALL)])


def test_the_first_bytes_that_come_are_believed_and_no_others_after_them() -> None:
    files = listing()
    right, wrong = DATA[:SIZE], DATA[1 : SIZE + 1]
    assert files.n_pieces == 4
    assert not files.is_right(0, right)
    assert not files.accept(0, right[:-1])
    assert files.accept(0, right)
    assert files.accept(0, right)
    assert not files.accept(0, wrong)
    assert files.is_right(0, right)
    assert not files.is_right(0, wrong)


def test_a_file_of_one_piece_is_known_before_it_comes() -> None:
    files = listing()
    assert not files.accept(3, b"?" * len(SMALL))
    assert files.is_right(3, SMALL)


def test_what_came_is_checked_by_later_readers(tmp_path: Path) -> None:
    cache = PieceCache(tmp_path)
    with cache.open(listing(), REF) as store:
        assert store.add(0, DATA[:SIZE])
    with cache.open(listing(), REF) as store, PieceStore(store.folder) as other:
        assert store.read(0) == other.read(0) == DATA[:SIZE]
        assert store.add(1, DATA[SIZE : 2 * SIZE])
        store.flush()
        other.require("a.safetensors", 0, 2 * SIZE)
        path = store.path("a.safetensors")
        with path.open("r+b") as file:
            file.write(b"damage")
        assert other.missing([0, 1]) == [0]
        assert not other.add(0, b"?" * SIZE)
        assert other.add(0, DATA[:SIZE])


def test_the_hashes_of_two_processes_come_together(tmp_path: Path) -> None:
    cache = PieceCache(tmp_path)
    with cache.open(listing(), REF) as one, cache.open(listing(), REF) as two:
        one.add(0, DATA[:SIZE])
        two.add(1, DATA[SIZE : 2 * SIZE])
        one.flush()
        two.flush()
    with cache.open(listing(), REF) as store:
        assert store.missing(range(4)) == [2, 3]
        assert store.read(0) + store.read(1) == DATA[: 2 * SIZE]


def test_it_reads_what_it_writes() -> None:
    files = listing()
    again = parse_list(files.encoded, files.root)
    assert isinstance(again, FileListing)
    assert again == files
    assert again.files == files.files


def encoded(*document: object) -> bytes:
    packed: bytes = msgpack.packb(document)
    return packed


FORM = "swarm-node files 1"
ENTRY = ["a.safetensors", 5, b"7" * 32]


@pytest.mark.parametrize(
    "document",
    [
        encoded(FORM, SIZE),
        encoded(FORM, 17, [ENTRY]),
        encoded(FORM, "x", [ENTRY]),
        encoded(FORM, SIZE, []),
        encoded(FORM, SIZE, "x"),
        encoded(FORM, SIZE, [ENTRY, ENTRY]),
        encoded(FORM, SIZE, [ENTRY[:2]]),
        encoded(FORM, SIZE, [["../a.safetensors", *ENTRY[1:]]]),
        encoded(FORM, SIZE, [["a.safetensors", 1 << 62, b"7" * 32]]),
        encoded(FORM, SIZE, [["a.safetensors", -1, b"7" * 32]]),
        encoded(FORM, SIZE, [["a.safetensors", True, b"7" * 32]]),
        encoded(FORM, SIZE, [["a.safetensors", 5, b"7"]]),
        encoded(FORM, SIZE, [["model-00001-of-00002.gguf", 5, b"7" * 32]]),
        FORM.encode(),
    ],
)
def test_what_is_no_listing(document: bytes) -> None:
    with pytest.raises((RemoteProtocolError, CheckpointError)):
        parse_list(document, hashlib.sha256(document).hexdigest())
    with pytest.raises(RemoteProtocolError):
        parse_list(document, "0" * 64)
