"""Whatever happens to a store's folder: what is read from it is right, or absent."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm_node.shards.formats.files.mapped_file import AbsentError, MappedFile
from swarm_node.shards.pieces import cache as piece_cache
from swarm_node.shards.pieces import checked
from swarm_node.shards.pieces import store as piece_store
from swarm_node.shards.pieces.cache import PieceCache
from swarm_node.shards.pieces.manifest import PieceFile, PieceManifest
from swarm_node.shards.pieces.store import FilePresence, PieceStore
from swarm_node.shards.pieces.store_users import is_used
from swarm_node.swarm.errors import CheckpointError
from swarm_node.swarm.types import ModelRef

SIZE = 16 * 1024
REF = ModelRef("tiny", "ab" * 32, 4)
DATA = {
    "config.json": b"{}" * 300,
    "model.safetensors": np.random.default_rng(1).bytes(9 * SIZE + 5000),
    "tokenizer.json": np.random.default_rng(2).bytes(2 * SIZE),
}


def manifest_of_data() -> PieceManifest:
    files = []
    for name, data in DATA.items():
        pieces = [data[start : start + SIZE] for start in range(0, len(data), SIZE)]
        head = 100 if name.endswith("safetensors") else len(data)
        hashes = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
        files.append(PieceFile(name, len(data), head, hashes, hashlib.sha256(data).digest()))
    return PieceManifest(SIZE, tuple(files))


MANIFEST = manifest_of_data()
EVENTS = ["add", "add", "fill", "flush", "crash", "flip", "cut", "lose", "claim"]
PIECES = range(MANIFEST.n_pieces)


def right(piece: int) -> bytes:
    place = MANIFEST.place(piece)
    return DATA[place.file.name][place.offset : place.offset + place.length]


@contextmanager
def another_process() -> Iterator[None]:
    """What this process has checked says nothing inside of it."""
    before = dict(checked._known)
    checked._known.clear()
    try:
        yield
    finally:
        checked._known.clear()
        checked._known.update(before)


def assert_honest(store: PieceStore) -> None:
    """Right or absent, for all who read: the sharer, the fetcher and the reader of a checkpoint."""
    claimed = store.held()
    present = set(PIECES) - set(store.missing(PIECES))
    assert present <= set(np.flatnonzero(claimed).tolist())
    for name in DATA:
        assert store.content(name) in (None, hashlib.sha256(DATA[name]).digest())
        file = MappedFile(store.path(name), FilePresence(store, name))
        for piece in MANIFEST.pieces_of(name):
            place = MANIFEST.place(piece)
            if piece in present:
                assert store.read(piece) == right(piece)
                assert file.slice(place.offset, place.length).tobytes() == right(piece)
                continue
            with pytest.raises(CheckpointError, match=r"not here|was damaged"):
                store.read(piece)
            with pytest.raises(AbsentError):
                file.slice(place.offset, place.length)
        file.close()


class Disk:
    """A store on a disk that loses what was not synced, and whose bytes change by themselves."""

    def __init__(self, folder: Path) -> None:
        self.n = 0
        self.folder = folder
        self.cache = PieceCache(folder / "0")
        self.store = self.cache.open(MANIFEST, REF)
        self.synced = folder / "synced"
        self.sync()

    def sync(self) -> None:
        """What a power cut leaves in any case."""
        shutil.rmtree(self.synced, ignore_errors=True)
        shutil.copytree(self.store.folder, self.synced)

    def flush(self) -> None:
        self.store.flush()
        self.sync()

    def crash(self, fate: Callable[[], int]) -> None:
        """The process ends; of each page that was not synced the old, the new, or nothing is left."""
        self.n += 1
        after = self.folder / str(self.n) / MANIFEST.root
        shutil.copytree(self.store.folder, after, ignore=shutil.ignore_patterns("users", "*.lock"))
        for path in [path for path in after.rglob("*") if path.is_file()]:
            old = self.synced / path.relative_to(after)
            if old.exists() and old.read_bytes() == path.read_bytes():
                continue
            path.write_bytes(torn(path.read_bytes(), old.read_bytes() if old.exists() else b"", fate))
        self.end()
        self.cache = PieceCache(after.parent)
        self.store = self.cache.open(MANIFEST, REF)
        self.sync()

    def end(self) -> None:
        """As a killed process does: nothing is written any more."""
        self.store._release()
        checked._known.clear()

    def flip(self, piece: int, byte: int) -> None:
        """Bit rot: no time of change tells of it."""
        place = MANIFEST.place(piece)
        path = self.store.path(place.file.name)
        status = path.stat()
        with path.open("r+b") as file:
            file.seek(place.offset + byte % place.length)
            was = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([was ^ 1]))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def reopen(self) -> None:
        self.store.close()
        checked._known.clear()
        self.store = self.cache.open(MANIFEST, REF)
        self.sync()


def torn(now: bytes, old: bytes, fate: Callable[[], int]) -> bytes:
    parts = []
    for start in range(0, len(now), SIZE):
        new = now[start : start + SIZE]
        before = old[start : start + SIZE].ljust(len(new), b"\0")
        parts.append((new, before, bytes(len(new)), new[: len(new) // 2].ljust(len(new), b"\0"))[fate() % 4])
    whole = b"".join(parts)
    return (whole, whole, old, b"", whole[: len(whole) // 2])[fate() % 5]


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_read_is_right_or_absent(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory(prefix="store-") as folder:
        _live_through(data, Disk(Path(folder)))


def _live_through(data: st.DataObject, disk: Disk) -> None:
    piece = st.sampled_from(PIECES)
    for _ in range(data.draw(st.integers(1, 12))):
        match data.draw(st.sampled_from(EVENTS)):
            case "add":
                disk.store.add(number := data.draw(piece), right(number))
            case "fill":
                disk.store.expect(PIECES)
                for number in disk.store.missing(PIECES):
                    assert disk.store.add(number, right(number))
            case "flush":
                disk.flush()
            case "crash":
                disk.crash(lambda: data.draw(st.integers(0, 19)))
            case "flip":
                disk.reopen()
                disk.flip(data.draw(piece), data.draw(st.integers(0, SIZE)))
            case "cut":
                path = disk.store.path(MANIFEST.place(data.draw(piece)).file.name)
                os.truncate(path, data.draw(st.integers(0, path.stat().st_size)))
            case "lose":
                disk.store.path(MANIFEST.place(data.draw(piece)).file.name).unlink()
                disk.reopen()
            case "claim":  # bits without data
                disk.store.flush()
                (disk.store.folder / "have").write_bytes(b"\xff" * (-(-len(PIECES) // 8)))
                disk.reopen()
    disk.reopen()
    assert_honest(disk.store)
    disk.store.expect(PIECES)
    for number in disk.store.missing(PIECES):
        assert disk.store.add(number, right(number))
    disk.store.flush()
    assert disk.store.is_whole
    assert_honest(disk.store)
    files = disk.store.folder / "files"
    assert {path.name: path.read_bytes() for path in files.iterdir()} == DATA
    disk.store.close()


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The folder of a store that has every piece, as another process left it."""
    with PieceCache(tmp_path).open(MANIFEST, REF) as store:
        for piece in PIECES:
            store.add(piece, right(piece))
    checked._known.clear()
    return store.folder


def zero(folder: Path, piece: int) -> None:
    place = MANIFEST.place(piece)
    with (folder / "files" / place.file.name).open("r+b") as file:
        file.seek(place.offset)
        file.write(bytes(place.length))


def test_one_hole_costs_one_piece(whole: Path) -> None:
    zero(whole, 4)
    with PieceStore(whole) as store:
        assert store.missing(PIECES) == [4]
        assert store.damaged == {4}
        assert store.path("model.safetensors").name == "model.safetensors.part"  # others must not use it
        assert store.add(4, right(4))
    assert (whole / "files" / "model.safetensors").read_bytes() == DATA["model.safetensors"]
    with PieceStore(whole) as store:
        assert store.missing(PIECES) == []


def test_what_others_claim_does_not_come_back_as_right(whole: Path) -> None:
    with PieceStore(whole) as other, another_process(), PieceStore(whole) as store:
        zero(whole, 4)
        assert store.missing(PIECES) == [4]
        store.flush()
        other.add(5, right(5))
        other.flush()  # with its claim of 4
        with pytest.raises(AbsentError):
            store.require("model.safetensors", 0, len(DATA["model.safetensors"]))
        assert other.missing(PIECES) == [4]


def test_each_byte_is_hashed_once_in_a_process(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    really = PieceManifest.is_right

    def counted(manifest: PieceManifest, piece: int, data: bytes) -> bool:
        hashed.append(piece)
        return really(manifest, piece, data)

    monkeypatch.setattr(PieceManifest, "is_right", counted)
    with PieceStore(whole) as store, PieceStore(whole) as again:
        for each in (store, again):
            assert each.missing(PIECES) == []
            each.require("model.safetensors", 0, 5 * SIZE)
        assert sorted(hashed) == list(PIECES)
        status = (whole / "files" / "model.safetensors").stat()
        os.utime(whole / "files" / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
        assert again.missing(PIECES) == []
        assert sorted(hashed) == sorted([*PIECES, *MANIFEST.pieces_of("model.safetensors")])


def test_a_full_disk_loses_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """Takes a part of the first write, as a disk does whose last blocks these are."""

        def __init__(self, file: object) -> None:
            self._file, self._left = file, 5000

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def write(self, data: memoryview) -> int:
            if not self._left:
                raise OSError(28, "No space left on device")
            n = self._file.write(data[: self._left])
            self._left = 0
            return n

    with PieceCache(tmp_path).open(MANIFEST, REF) as store:
        store.add(1, right(1))
        opened = PieceStore._opened
        monkeypatch.setattr(PieceStore, "_opened", lambda self, *given: Full(opened(self, *given)))
        with pytest.raises(CheckpointError, match="No space left") as raised:
            store.add(2, right(2))
        assert "Free some space" in raised.value.hint
        monkeypatch.undo()
        assert store.missing([1, 2]) == [2]
        assert store.add(2, right(2))
        assert store.missing([1, 2]) == []


def test_a_sync_that_fails_claims_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(handle: int) -> None:
        raise OSError(5, "Input/output error")

    store = PieceCache(tmp_path).open(MANIFEST, REF)
    store.add(1, right(1))
    monkeypatch.setattr(piece_store, "_to_disk", broken)
    with pytest.raises(CheckpointError, match="cannot write"):
        store.flush()
    assert not (store.folder / "have").exists()
    monkeypatch.undo()
    store.close()
    assert (store.folder / "have").exists()


def test_a_bad_sector_costs_what_lies_on_it(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = checked._wrong_in_turn
    bad = MANIFEST.place(4)

    class Sector:
        def __init__(self, file: object) -> None:
            self._file = file

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

        def __enter__(self) -> Sector:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def readinto(self, data: memoryview) -> int:
            if self._file.tell() == bad.offset:
                raise OSError(5, "Input/output error")
            return self._file.readinto(data)

    class BadPath:
        def __init__(self, path: Path) -> None:
            self._path = path

        def open(self, *given: object, **named: object) -> Sector:
            return Sector(self._path.open(*given, **named))

    monkeypatch.setattr(checked, "_wrong_in_turn", lambda m, path, some: really(m, BadPath(path), some))
    with PieceStore(whole) as store:
        assert store.missing(MANIFEST.pieces_of("model.safetensors")) == [4]


@pytest.mark.parametrize("name", ["manifest", "about.json", "have"])
@pytest.mark.parametrize("damage", ["emptied", "cut", "zeroed", "gone", "a pipe"])
def test_small_files_are_written_anew(whole: Path, name: str, damage: str) -> None:
    path = whole / name
    data = path.read_bytes()
    match damage:
        case "emptied":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "zeroed":
            path.write_bytes(bytes(len(data)))
        case "gone":
            path.unlink()
        case "a pipe":  # whoever opens one waits
            path.unlink()
            os.mkfifo(path)
    cache = PieceCache(whole.parent)
    with cache.open(MANIFEST, REF) as store:
        expected = list(PIECES) if name == "have" else []
        assert store.missing(PIECES) == expected
        assert store.model == REF
        assert_honest(store)
    assert [model.root for model in cache.models()] == [MANIFEST.root]


@pytest.mark.parametrize("thing", ["files", "manifest", "files/model.safetensors"])
def test_a_folder_that_cannot_be_used_is_set_aside(whole: Path, thing: str) -> None:
    cache = PieceCache(whole.parent)
    for _ in range(2):
        path = whole / thing
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if thing == "files":
            path.write_bytes(b"")
        else:
            (path / "inner").mkdir(parents=True)
        with cache.open(MANIFEST, REF) as store:
            assert store.missing(PIECES) == list(PIECES)
            store.add(0, right(0))
        aside = whole.with_suffix(".bad")
        assert sorted(path for path in whole.parent.iterdir() if path.is_dir()) == [whole, aside]
    with cache.open(MANIFEST, REF) as store:
        cache.make_room(store, 1)  # what was set aside goes first, though there is room
    assert not aside.exists()
    assert whole.exists()


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a link"])
def test_what_is_no_file_is_missing_and_set_aside(whole: Path, kind: str) -> None:
    """To open a pipe is to wait for whoever writes into it."""
    cache, path = PieceCache(whole.parent), whole / "files" / "tokenizer.json"
    with PieceStore(whole) as store:
        path.unlink()
        (elsewhere := whole.parent / "elsewhere").write_bytes(b"mine")
        match kind:
            case "a pipe":
                os.mkfifo(path)
            case "a folder":
                path.mkdir()
            case "a link":
                path.symlink_to(elsewhere)
        pieces = list(MANIFEST.pieces_of("tokenizer.json"))
        with pytest.raises(CheckpointError):
            store.read(pieces[0])
        assert store.missing(PIECES) == pieces
    assert cache.models() == []
    assert cache.find(MANIFEST.root) is None
    with cache.open(MANIFEST, REF) as store:
        assert store.missing(PIECES) == list(PIECES)
        for piece in pieces:
            store.add(piece, right(piece))
    assert whole.with_suffix(".bad").exists()
    assert elsewhere.read_bytes() == b"mine"


def test_an_eviction_cut_short_leaves_no_store(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(folder: Path, **_: object) -> None:
        if folder.exists():
            (folder / "files" / "model.safetensors").unlink()

    cache = PieceCache(whole.parent, max_bytes=10)
    other = PieceManifest(SIZE, (PieceFile("model.gguf", 5, 5, bytes(32), bytes(32)),))
    with cache.open(other, REF) as store:
        monkeypatch.setattr(shutil, "rmtree", dies)
        cache.make_room(store, 5)
        monkeypatch.undo()
        assert cache.find(MANIFEST.root) is None
        assert len(cache.models()) == 1
        cache.make_room(store, 5)
    assert [path.name for path in whole.parent.iterdir() if path.is_dir()] == [other.root]


def test_a_store_that_is_opened_while_it_is_evicted_stays(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[PieceStore] = []

    def opened_just_after(folder: Path) -> bool:
        if not opened:
            opened.append(PieceStore(folder))
            return False
        return is_used(folder)

    monkeypatch.setattr(piece_cache, "is_used", opened_just_after)
    assert not piece_cache._evict(whole)
    assert opened[0].missing(PIECES) == []
    opened[0].close()
    assert piece_cache._evict(whole)
    assert list(whole.parent.glob(f"{MANIFEST.root}*")) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_disk_that_is_only_read_is_used_as_it_is(whole: Path) -> None:
    zero(whole, 4)
    folders = [whole.parent, whole, *(path for path in whole.iterdir() if path.is_dir())]
    for file in (whole / "files").iterdir():
        file.chmod(0o400)
    for folder in folders:
        folder.chmod(0o500)
    try:
        with PieceCache(whole.parent).find(MANIFEST.root) as store:
            assert store.missing(PIECES) == [4]
            with pytest.raises(CheckpointError, match="cannot write"):
                store.add(4, right(4))
    finally:
        for folder in folders:
            folder.chmod(0o700)
