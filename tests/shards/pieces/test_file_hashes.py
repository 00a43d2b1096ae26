from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.shards.pieces import file_hashes
from swarm_node.shards.pieces.file_hashes import (
    FileHashes,
    FileState,
    HashingStopped,
    hash_files,
    hashing_watched,
)
from swarm_node.swarm.errors import CheckpointError

PIECE = 16 * 1024


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(file_hashes, "SETTLED_S", 0.0)  # the files of a test are young
    return tmp_path / "home"


def hashes_of(path: Path, *, piece_size: int = PIECE) -> FileHashes:
    return hash_files({"it": path}, piece_size)["it"]


def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read from here on."""
    seen: list[Path] = []
    read = file_hashes._Reading._read

    def noted(self: file_hashes._Reading, key: str) -> FileHashes:
        seen.append(self._files[key])
        return read(self, key)

    monkeypatch.setattr(file_hashes._Reading, "_read", noted)
    return seen


@given(size=st.integers(0, 9 * PIECE), pieces=st.booleans(), step=st.integers(PIECE // 4, 3 * PIECE))
@settings(max_examples=40)
def test_hashes_are_those_of_the_bytes(
    tmp_path_factory: pytest.TempPathFactory, size: int, pieces: bool, step: int
) -> None:
    data = os.urandom(size)
    path = tmp_path_factory.mktemp("hashes") / "file"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_hashes, "_READ", step)
        found = hash_files({"it": path}, PIECE if pieces else 0, remembered=path.parent / "memory")["it"]
    assert found.size == size
    assert found.sha256 == hashlib.sha256(data).digest()
    expected = [hashlib.sha256(data[at : at + PIECE]).digest() for at in range(0, size, PIECE)]
    assert found.pieces == (b"".join(expected) if pieces else b"")


def test_several_files_are_read_side_by_side_and_progress_ends_at_all_of_them(tmp_path: Path) -> None:
    files = {}
    for number in range(6):
        (tmp_path / str(number)).write_bytes(bytes([number]) * (number + 1) * 1000)
        files[str(number)] = tmp_path / str(number)
    told: list[tuple[int, int]] = []
    found = hash_files(files, progress=lambda done, total, label: told.append((done, total)))
    assert told[0] == (0, 21_000)
    assert told[-1] == (21_000, 21_000)
    for name, path in files.items():
        assert found[name].sha256 == hashlib.sha256(path.read_bytes()).digest()


def test_what_is_remembered_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 300)
    seen = reads(monkeypatch)
    first = hashes_of(path)
    assert hashes_of(path) == first
    assert hashes_of(path, piece_size=0) == first  # less is answered by more
    assert len(seen) == 1
    assert hashes_of(path, piece_size=2 * PIECE) != first  # and other pieces are not
    assert len(seen) == 2


def change_a_byte(path: Path) -> None:
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # only the inode's own time tells


def replace(path: Path) -> None:
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(bytes([7]) * before.st_size)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize("change", [change_a_byte, replace, grow, lambda path: path.touch()])
def test_a_file_that_changed_in_any_way_is_read_again(
    tmp_path: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 300)
    hashes_of(path)
    seen = reads(monkeypatch)
    time.sleep(0.02)  # times of change have the kernel's tick
    change(path)
    assert hashes_of(path).sha256 == hashlib.sha256(path.read_bytes()).digest()
    assert seen == [path]


def test_a_link_that_leads_elsewhere_is_another_file(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 1000)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a")
    first = hashes_of(link)
    link.unlink()
    link.symlink_to(tmp_path / "b")
    assert hashes_of(link) != first


def test_hashes_come_in_the_order_of_the_files_whichever_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_hashes, "SETTLED_S", 0.0)
    files = {name: tmp_path / name for name in "abc"}
    for name, path in files.items():
        path.write_text(name)
    hash_files({"c": files["c"]}, remembered=tmp_path / "memory")
    assert list(hash_files(files, remembered=tmp_path / "memory")) == ["a", "b", "c"]


def test_a_file_that_has_just_changed_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within one tick of the file system's clock would not be seen."""
    monkeypatch.setattr(file_hashes, "SETTLED_S", 60.0)
    path = tmp_path / "file"
    path.write_bytes(b"young")
    seen = reads(monkeypatch)
    hashes_of(path)
    hashes_of(path)
    assert len(seen) == 2


@pytest.mark.parametrize("damage", [b"", b"\xc1", b"\x94\xa1x\xa0\x00\xa0", b"short"])
def test_a_damaged_record_is_made_again(tmp_path: Path, home: Path, damage: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    first = hashes_of(path)
    (record,) = (home / "hashes").glob("*.hashes")
    record.write_bytes(damage)
    assert hashes_of(path) == first
    assert record.read_bytes() != damage


def test_a_state_folder_that_cannot_be_written_costs_only_time(tmp_path: Path, home: Path) -> None:
    home.write_text("no folder")
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert hashes_of(path) == hashes_of(path)


def test_a_bit_that_flips_in_a_record_changes_no_hash(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    right = hashes_of(path)
    (record,) = (home / "hashes").glob("*.hashes")
    data = record.read_bytes()
    for at in range(0, len(data), 7):
        record.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        assert hashes_of(path) == right


def test_old_records_go(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "_REMEMBERED", 3)
    for number in range(5):
        path = tmp_path / str(number)
        path.write_bytes(bytes([number]))
        hashes_of(path)
    assert len(list((home / "hashes").iterdir())) == 3


def test_a_file_that_changes_while_it_is_hashed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * PIECE))

    def touch(done: int, total: int, label: str) -> None:
        grow(path)

    with pytest.raises(CheckpointError, match="changed while"):
        hash_files({"it": path}, progress=touch)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*nothing"):
        hashes_of(tmp_path / "nothing")


def test_hashing_stops_when_told_however_large_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(40 << 30)  # holes: reading and hashing all of it takes a minute
    stop = threading.Event()
    told: list[int] = []

    def soon(done: int, total: int, label: str) -> None:
        told.append(done)
        if len(told) == 3:
            stop.set()

    began = time.monotonic()
    with pytest.raises(HashingStopped):
        hash_files({"it": path}, 8 << 20, progress=soon, stop=stop)
    assert time.monotonic() - began < 5
    assert len(told) < 10


async def test_a_thread_stops_hashing_when_its_task_is_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(40 << 30)
    told, ended = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hashing() -> None:
        try:
            hash_files({"it": path})
        except HashingStopped:
            ended.set()

    async def opening() -> None:
        with hashing_watched(lambda *_: loop.call_soon_threadsafe(told.set)), hashing_watched():
            await asyncio.to_thread(hashing)

    task = asyncio.create_task(opening())
    await told.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(ended.wait, 5)


def test_a_state_is_that_of_the_file_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert FileState.of(tmp_path / "link") == FileState.of(tmp_path / "a")
