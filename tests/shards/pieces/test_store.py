from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from swarm_node.shards.formats.files.mapped_file import AbsentError, MappedFile
from swarm_node.shards.pieces.cache import PieceCache
from swarm_node.shards.pieces.hashing import manifest_of, model_files
from swarm_node.shards.pieces.holder import WholeFiles
from swarm_node.shards.pieces.manifest import PieceManifest
from swarm_node.shards.pieces.store import FilePresence, PieceStore
from swarm_node.shards.pieces.store_users import is_used
from swarm_node.swarm.errors import CheckpointError, UsageError
from swarm_node.swarm.types import ModelRef

SIZE = 16 * 1024
REF = ModelRef("tiny", "ab" * 32, 4)


@pytest.fixture
def whole(hf_llama: Callable[..., Path]) -> WholeFiles:
    path = hf_llama(shards=2)
    return WholeFiles(manifest_of(path, piece_size=SIZE), model_files(path))


@pytest.fixture
def cache(tmp_path: Path) -> PieceCache:
    return PieceCache(tmp_path / "cache")


def weights(manifest: PieceManifest) -> str:
    return max(manifest.files, key=lambda f: f.size).name


def test_a_store_keeps_what_was_right(whole: WholeFiles, cache: PieceCache) -> None:
    with cache.open(whole.manifest, REF) as store:
        data = whole.read(0)
        came: list[int] = []
        end = store.watch(came.append)
        assert not store.add(0, data[:-1] + b"?")
        assert not store.add(1, data)
        assert store.add(0, data)
        assert (came, store.missing([0, 1, 0])) == ([0], [1])
        assert store.read(0) == data
        end()
        assert store.add(1, whole.read(1))
        assert came == [0]
        with pytest.raises(CheckpointError, match="not here"):
            store.read(2)
    with cache.open(whole.manifest, REF) as store:
        assert store.held().tolist() == [True, True] + [False] * (whole.manifest.n_pieces - 2)


def test_holes_are_never_read(whole: WholeFiles, cache: PieceCache) -> None:
    with cache.open(whole.manifest, REF) as store:
        name = weights(store.manifest)
        pieces = store.manifest.pieces_of(name)
        store.add(pieces[0], whole.read(pieces[0]))
        store.add(pieces[2], whole.read(pieces[2]))
        file = MappedFile(store.path(name), FilePresence(store, name))
        assert len(file.head()) == store.manifest.file(name).head
        assert file.slice(0, SIZE).tobytes() == whole.read(pieces[0])
        for start, length in [(SIZE - 1, 2), (SIZE, 1), (2 * SIZE - 1, 2), (0, 3 * SIZE), (3 * SIZE, 1)]:
            with pytest.raises(AbsentError, match="not fetched"):
                file.slice(start, length)
        store.add(pieces[1], whole.read(pieces[1]))
        assert file.slice(0, 3 * SIZE).nbytes == 3 * SIZE
        file.close()


def test_a_file_gets_its_name_when_it_is_whole(whole: WholeFiles, cache: PieceCache) -> None:
    with cache.open(whole.manifest, REF) as store:
        files = store.folder / "files"
        assert all(path.name.endswith(".part") for path in files.iterdir())
        for piece in range(store.manifest.n_pieces):
            assert store.add(piece, whole.read(piece))
        store.flush()
        assert sorted(path.name for path in files.iterdir()) == [f.name for f in store.manifest.files]
        assert store.is_whole
        assert store.bytes_held == store.manifest.total_bytes
    assert [(m.name, m.whole, m.nbytes) for m in cache.models()] == [
        ("tiny", True, whole.manifest.total_bytes)
    ]


def test_what_was_not_yet_safe_on_disk_does_not_count_after_a_crash(
    whole: WholeFiles, cache: PieceCache
) -> None:
    crashed = cache.open(whole.manifest, REF)
    crashed.add(0, whole.read(0))  # never flushed: the process is gone
    with cache.open(whole.manifest, REF) as store:
        assert not store.held().any()
        (store.folder / "have").write_bytes(b"\xff")  # cut short
    with cache.open(whole.manifest, REF) as store:
        assert not store.held().any()
    crashed.close()


def test_two_processes_fill_one_store(whole: WholeFiles, cache: PieceCache) -> None:
    n = whole.manifest.n_pieces
    with cache.open(whole.manifest, REF) as a, cache.open(whole.manifest, REF) as b:
        for piece in range(n):
            assert (a, b)[piece % 2].add(piece, whole.read(piece))
        a.flush()
        b.flush()
        a.require(weights(a.manifest), 0, 3 * SIZE)  # it looks again before it says no
    with cache.open(whole.manifest, REF) as store:
        assert store.is_whole


def test_a_store_that_was_tampered_with_is_not_opened(whole: WholeFiles, cache: PieceCache) -> None:
    store = cache.open(whole.manifest, REF)
    store.close()
    manifest = store.folder / "manifest"
    manifest.write_bytes(manifest.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="not a usable store"):
        PieceStore(store.folder)
    assert cache.models() == []
    assert cache.find(whole.manifest.root) is None
    assert cache.find("../" + "a" * 61) is None


@pytest.mark.parametrize("change", ["in place", "cut", "gone"])
def test_a_file_that_changed_is_not_served(hf_llama: Callable[..., Path], change: str) -> None:
    path = hf_llama()
    told: list[str] = []
    manifest = manifest_of(path, piece_size=SIZE)
    whole = WholeFiles(manifest, model_files(path), lambda error: told.append(error.message))
    config, piece = path / "config.json", manifest.pieces_of("config.json")[0]
    status = config.stat()
    match change:
        case "in place":
            config.write_text(config.read_text().replace("1", "2"))
            os.utime(config, ns=(status.st_atime_ns, status.st_mtime_ns))
        case "cut":
            os.truncate(config, 10)
        case "gone":
            config.unlink()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"config\.json"):
            whole.read(piece)
    assert len(told) == 1
    assert not whole.held().any()


def fill(cache: PieceCache, holder: WholeFiles) -> Path:
    with cache.open(holder.manifest, REF) as store:
        for piece in range(holder.manifest.n_pieces):
            store.add(piece, holder.read(piece))
        return store.folder


def models(hf_llama: Callable[..., Path], count: int) -> list[WholeFiles]:
    paths = [hf_llama(f"model{i}", seed=i) for i in range(count)]
    return [WholeFiles(manifest_of(path, piece_size=SIZE), model_files(path)) for path in paths]


def test_the_least_lately_used_go_first(hf_llama: Callable[..., Path], tmp_path: Path) -> None:
    first, second, third = models(hf_llama, 3)
    size = first.manifest.total_bytes
    cache = PieceCache(tmp_path / "cache", max_bytes=int(size * 2.7))
    folders = [fill(cache, holder) for holder in (first, second)]
    for age, folder in zip((100, 200), folders, strict=True):
        os.utime(folder, (10**9 - age, 10**9 - age))  # the second was used before the first
    with cache.open(third.manifest, REF) as store:
        cache.make_room(store, size)
    assert [folder.exists() for folder in folders] == [True, False]


def test_what_is_in_use_stays(hf_llama: Callable[..., Path], tmp_path: Path) -> None:
    first, second = models(hf_llama, 2)
    size = first.manifest.total_bytes
    cache = PieceCache(tmp_path / "cache", max_bytes=int(size * 1.5))
    folder = fill(cache, first)
    used = PieceStore(folder)
    assert is_used(folder)
    with cache.open(second.manifest, REF) as store:
        with pytest.raises(UsageError, match=r"do not fit beside .* in use") as raised:
            cache.make_room(store, size)
        assert "--cache-size" in raised.value.hint
        used.close()
        assert not is_used(folder)
        cache.make_room(store, size)
    assert not folder.exists()


def test_a_user_that_died_keeps_nothing(whole: WholeFiles, cache: PieceCache) -> None:
    folder = fill(cache, whole)
    (folder / "users" / "99999-1-1.lock").write_text("")
    assert not is_used(folder)
    assert list((folder / "users").iterdir()) == []


def test_a_full_disk_is_said_before_anything_is_fetched(
    whole: WholeFiles, cache: PieceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 10**9 + 5})
    monkeypatch.setattr("swarm_node.shards.pieces.cache.shutil.disk_usage", lambda path: usage)
    with cache.open(whole.manifest, REF) as store:
        cache.make_room(store, 5)
        with pytest.raises(UsageError, match=r"do not fit on the disk .* MB that are free [0-9]+ stay so"):
            cache.make_room(store, 6)


def test_bits_are_counted_right(whole: WholeFiles, cache: PieceCache) -> None:
    rng = np.random.default_rng(1)
    with cache.open(whole.manifest, REF) as store:
        chosen = np.flatnonzero(rng.random(store.manifest.n_pieces) < 0.5).tolist()
        for piece in chosen:
            store.add(piece, whole.read(piece))
        assert store.bytes_held == sum(store.manifest.size_of(piece) for piece in chosen)
