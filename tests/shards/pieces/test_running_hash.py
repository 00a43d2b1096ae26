"""A file's SHA-256, computed while its pieces come: of right bytes alone, and none of them read twice."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

import pytest

from swarm_node.shards.checkpoint import stored
from swarm_node.shards.checkpoint.stored import ForgedError, IncompleteError, check_whole_files
from swarm_node.shards.pieces import checked
from swarm_node.shards.pieces.cache import PieceCache
from swarm_node.shards.pieces.manifest import PieceFile, PieceManifest
from swarm_node.shards.pieces.running_hash import RunningHash
from swarm_node.shards.pieces.store import PieceStore
from swarm_node.swarm.types import ModelRef
from tests.shards.pieces.test_store_damage import DATA, MANIFEST, PIECES, SIZE, another_process, right

NAME = "model.safetensors"
OF_FILE = MANIFEST.pieces_of(NAME)
CONTENT = hashlib.sha256(DATA[NAME]).digest()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PieceStore]:
    with PieceCache(tmp_path).open(MANIFEST, ModelRef("tiny", "ab" * 32, 4)) as store:
        yield store


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pieces that were read for a file's SHA-256, in order."""
    found: list[int] = []
    really = RunningHash.read

    def noted(running: RunningHash, pieces: range, file: FileIO) -> memoryview:
        found.extend(pieces)
        return really(running, pieces, file)

    monkeypatch.setattr(RunningHash, "read", noted)
    monkeypatch.setattr(checked, "_AT_ONCE", 2 * SIZE)
    return found


def fill(store: PieceStore, order: list[int] | range = PIECES) -> None:
    store.expect(order)
    for piece in order:
        assert store.add(piece, right(piece))
    store.flush()


def zero(store: PieceStore, piece: int) -> None:
    with store.path(NAME).open("r+b") as file:
        file.seek(MANIFEST.place(piece).offset)
        file.write(bytes(SIZE))


def not_read(*_: object, **__: object) -> list[object]:
    raise AssertionError("a file was read again")


@pytest.mark.parametrize("seed", range(5))
def test_in_any_order_each_byte_is_hashed_once(
    store: PieceStore, read: list[int], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, random.Random(seed).sample(PIECES, len(PIECES)))
    monkeypatch.setattr(stored, "hashed", lambda files: not_read() if files else [])
    check_whole_files(store)
    with PieceStore(store.folder) as again:  # of the same process
        check_whole_files(again)
        assert {name: again.content(name) for name in DATA} == {
            name: hashlib.sha256(data).digest() for name, data in DATA.items()
        }
    assert sorted(read) == list(PIECES)


def test_of_pieces_that_come_in_order_hardly_anything_is_left(store: PieceStore, read: list[int]) -> None:
    store.expect(OF_FILE)
    for number, piece in enumerate(OF_FILE, start=1):
        assert store.add(piece, right(piece))
        assert read == list(OF_FILE)[: number // 2 * 2]
    assert store.content(NAME) == CONTENT
    assert read == list(OF_FILE)


def test_one_piece_does_not_wait_for_all_that_it_completes(store: PieceStore, read: list[int]) -> None:
    store.expect(OF_FILE)
    for piece in OF_FILE[1:]:
        store.add(piece, right(piece))
    assert read == []
    store.add(OF_FILE[0], right(OF_FILE[0]))
    assert read == list(OF_FILE[:2])


def test_a_file_of_which_only_a_part_is_wanted_is_not_hashed(store: PieceStore, read: list[int]) -> None:
    fill(store, OF_FILE[:-1])
    assert read == []
    assert store.content(NAME) is None


def test_several_threads_bring_one_file(store: PieceStore) -> None:
    order = random.Random(7).sample(OF_FILE, len(OF_FILE))
    store.expect(order)
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda piece: store.add(piece, right(piece)), order))
    assert store.content(NAME) == CONTENT


def test_what_was_there_before_counts_once_it_was_checked(store: PieceStore, read: list[int]) -> None:
    fill(store, OF_FILE[:5])
    with another_process(), PieceStore(store.folder) as later:
        zero(later, OF_FILE[2])
        missing = later.missing(OF_FILE)
        assert missing == [OF_FILE[2], *OF_FILE[5:]]
        fill(later, missing)
        assert later.content(NAME) == CONTENT
        check_whole_files(later)
    assert sorted(read) == list(OF_FILE)


CHANGES: dict[str, Callable[[Path], None]] = {
    "touched": lambda path: os.utime(path, ns=(0, 1)),
    "cut": lambda path: os.truncate(path, SIZE),
    "gone": lambda path: path.unlink(),
    "another file": lambda path: (path.rename(path.with_suffix(".old")), path.write_bytes(DATA[NAME]))[0],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("after", [6, len(OF_FILE)])
def test_what_others_changed_is_hashed_anew(store: PieceStore, change: str, after: int) -> None:
    store.expect(OF_FILE)
    for piece in OF_FILE[:after]:
        store.add(piece, right(piece))
    CHANGES[change](store.path(NAME))
    assert store.content(NAME) is None
    fill(store, store.missing(OF_FILE))
    assert store.content(NAME) in (None, CONTENT)
    check_whole_files(store)
    assert (store.folder / "files" / NAME).read_bytes() == DATA[NAME]


def test_a_piece_that_is_written_again_is_hashed_again(store: PieceStore, read: list[int]) -> None:
    fill(store, OF_FILE)
    assert store.content(NAME) == CONTENT
    assert store.add(OF_FILE[3], right(OF_FILE[3]))
    assert store.content(NAME) == CONTENT
    assert read == [*OF_FILE, *OF_FILE]


def test_a_piece_that_could_not_be_written_again_is_no_part(store: PieceStore) -> None:
    fill(store, OF_FILE)

    def write() -> None:
        path = store.path(NAME)
        with path.open("r+b", buffering=0) as file, store._checked.write(NAME, OF_FILE[0], file):
            file.write(bytes(10))
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write()
    assert store.content(NAME) is None
    assert store.missing(OF_FILE) == [OF_FILE[0]]


def test_damage_that_no_time_of_change_tells_of_is_not_believed_nor_blamed_on_the_list(
    store: PieceStore,
) -> None:
    store.expect(OF_FILE)
    for piece in OF_FILE[1:]:
        store.add(piece, right(piece))
    status = store.path(NAME).stat()
    zero(store, OF_FILE[7])
    os.utime(store.path(NAME), ns=(status.st_atime_ns, status.st_mtime_ns))
    store.add(OF_FILE[0], right(OF_FILE[0]))
    store.flush()
    assert store.content(NAME) not in (None, CONTENT)
    with pytest.raises(IncompleteError) as raised:
        check_whole_files(store)
    assert raised.value.pieces == [OF_FILE[7]]
    fill(store, raised.value.pieces)
    check_whole_files(store)
    assert (store.folder / "files" / NAME).read_bytes() == DATA[NAME]


def test_a_list_of_another_file_is_found_out(tmp_path: Path) -> None:
    files = tuple(
        PieceFile(f.name, f.size, f.head, f.hashes, bytes(32) if f.name == NAME else f.content)
        for f in MANIFEST.files
    )
    with PieceCache(tmp_path).open(PieceManifest(SIZE, files), ModelRef("tiny", "ab" * 32, 4)) as store:
        fill(store)
        assert store.content(NAME) == CONTENT
        with pytest.raises(ForgedError, match=NAME):
            check_whole_files(store)
