from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.shards.pieces.digest import gguf_names
from swarm_node.shards.pieces.hashing import manifest_of, model_files
from swarm_node.shards.pieces.manifest import (
    FORMAT,
    MAX_FILES,
    MAX_HEADS,
    MAX_MANIFEST,
    MAX_PIECE,
    MAX_PIECES,
    MIN_PIECE,
    PieceFile,
    PieceManifest,
    piece_size_for,
)
from swarm_node.swarm.errors import CheckpointError, RemoteProtocolError

SIZE = 16 * 1024


def file(name: str, size: int = 10, head: int | None = None) -> PieceFile:
    if head is None:
        head = 0 if name.endswith((".gguf", ".safetensors")) else size
    hashes = bytes(32 * -(-size // SIZE))
    return PieceFile(name, size, head, hashes, bytes(32))


def manifest(*files: PieceFile, piece_size: int = SIZE) -> PieceManifest:
    return PieceManifest(piece_size, files)


def encoded(files: object, piece_size: object = SIZE, form: object = FORMAT) -> bytes:
    return msgpack.packb([form, piece_size, files])


def parse(data: bytes) -> PieceManifest:
    return PieceManifest.parse(data, hashlib.sha256(data).hexdigest())


CONFIG, WEIGHTS = file("config.json"), file("model.safetensors", 3 * SIZE + 1, 99)


@given(
    sizes=st.lists(st.integers(1, 5 * SIZE), min_size=1, max_size=6),
    start=st.integers(0, 5 * SIZE),
    length=st.integers(0, 5 * SIZE),
)
@settings(max_examples=40)
def test_every_byte_lies_in_one_piece(sizes: list[int], start: int, length: int) -> None:
    files = [CONFIG, *(file(f"model-{i}.safetensors", size) for i, size in enumerate(sizes))]
    m = manifest(*files)
    seen = {f.name: 0 for f in files}
    for piece in range(m.n_pieces):
        place = m.place(piece)
        assert place.offset == seen[place.file.name]
        assert 0 < place.length <= SIZE
        assert m.pieces_of(place.file.name, place.offset, place.length) == range(piece, piece + 1)
        seen[place.file.name] += place.length
    assert seen == {f.name: f.size for f in files}
    assert m.total_bytes == sum(seen.values())
    for f in files:
        pieces = m.pieces_of(f.name, start, length)
        inside = range(max(start, 0), min(start + length, f.size))
        held = [m.place(piece) for piece in pieces]
        if inside:
            assert held[0].offset <= inside[0] < held[0].offset + SIZE
            assert held[-1].offset <= inside[-1] < held[-1].offset + held[-1].length
        else:
            assert not pieces


def test_an_encoding_and_back() -> None:
    m = manifest(CONFIG, WEIGHTS)
    assert parse(m.encoded) == m
    assert parse(m.encoded).root == m.root == hashlib.sha256(m.encoded).hexdigest()


def test_a_manifest_that_was_not_asked_for_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="not the one asked for"):
        PieceManifest.parse(manifest(CONFIG, WEIGHTS).encoded, "0" * 64)


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "a/b.safetensors",
        "a\\b.safetensors",
        "..safetensors",
        "model..safetensors",
        ".hidden.safetensors",
        "C:model.safetensors",
        "con.safetensors",
        "NUL.x.safetensors",
        "model.safetensors\0",
        "model.safetensors\n",
        "modél.safetensors",
        "model.bin",
        "model.pkl",
        "model.py",
        "run.sh",
        "other.json",
        "authorized_keys",
        "a" * 130 + ".safetensors",
        "model.safetensors.part",
        "another.gguf",
        "model-1-of-2.gguf",
        "model-00001-of-00002.gguf.part",
        "../model-00001-of-00002.gguf",
        "model-\u0661\u0661\u0661\u0661\u0661-of-00002.gguf",
        "",
    ],
)
def test_no_other_names_than_a_model_has(name: str) -> None:
    bad = [
        [f.name, f.size, f.head, f.hashes, f.content]
        for f in sorted((CONFIG, WEIGHTS, file(name)), key=lambda f: f.name)
    ]
    with pytest.raises(RemoteProtocolError, match=r"malformed: .*a file called"):
        parse(encoded(bad))


H = bytes(32)
C, W = [[getattr(f, field) for field in PieceFile.__slots__] for f in (CONFIG, WEIGHTS)]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "malformed"),
        (b"\xc1", "malformed"),
        (msgpack.packb({"a": 1}), "malformed"),
        (encoded([C, W], form="swarm-node pieces 2"), "another format"),
        (encoded([]), "0 files"),
        (encoded([W]), "no config.json"),
        (encoded([C]), "no weights"),
        (encoded([W, C]), "out of order"),
        (encoded([C, C, W]), "twice"),
        (encoded([C, ["MODEL.safetensors", *W[1:]], W]), "out of order|twice"),
        (encoded([C, ["model.gguf", *W[1:]]]), "other files than one GGUF model has"),
        (encoded([["model-00001-of-00002.gguf", *W[1:]]]), "other files than one GGUF model has"),
        (
            encoded([[f"model-0000{n}-of-00003.gguf", *W[1:]] for n in (1, 3)]),
            "other files than one GGUF model has",
        ),
        (
            encoded([[f"model-0000{n}-of-0000{n + 1}.gguf", *W[1:]] for n in (1, 2)]),
            "other files than one GGUF model has",
        ),
        (
            encoded([[name, *W[1:]] for name in ("model-00001-of-00001.gguf", "model.gguf")]),
            "other files than one GGUF model has",
        ),
        (encoded([C, [W[0], 0, 0, b"", H]]), "has 0 bytes"),
        (encoded([C, [W[0], -1, 0, b"", H]]), "has -1 bytes"),
        (encoded([C, [W[0], 2**62, 0, b"", H]]), "has 46"),
        (encoded([C, [W[0], W[1], W[1] + 1, W[3], H]]), "its head"),
        (encoded([[C[0], C[1], 0, C[3], H], W]), "config.json is not all head"),
        (encoded([C, [W[0], W[1], 0, W[3][:-1], H]]), "hashes"),
        (encoded([C, [W[0], W[1], 0, W[3] + H, H]]), "hashes"),
        (encoded([C, [W[0], True, 0, W[3], H]]), "without name"),
        (encoded([C, W[:4]]), "without name"),
        (encoded([C, [*W[:4], H[1:]]]), "a content"),
        (encoded([[*C[:4], b"x" * 32], W]), "a content"),
        (encoded([["model.gguf", *W[1:4], H[1:]]]), "a content"),
        (encoded([C, W], piece_size=MIN_PIECE // 2), "pieces of"),
        (encoded([C, W], piece_size=MAX_PIECE * 2), "pieces of"),
        (encoded([C, W], piece_size=SIZE + 1), "pieces of"),
        (encoded([C, W], piece_size="big"), "pieces of"),
        (encoded([C, *([f"m{i:04}.safetensors", 1, 0, H, H] for i in range(MAX_FILES))]), "malformed"),
        (encoded([C, [W[0], SIZE * MAX_PIECES, 0, bytes(32 * MAX_PIECES), H]]), "more than"),
        (
            encoded([C, [W[0], MAX_HEADS + 1, MAX_HEADS + 1, bytes(32 * (MAX_HEADS // SIZE + 1)), H]]),
            "heads of",
        ),
        (bytes(MAX_MANIFEST + 1), "at most"),
        (b"\x91" * 400 + b"\x90", "malformed"),
        (msgpack.packb([[[]] * 512] * 512), "too many arrays"),
        (encoded([C, ["x" * 257, *W[1:]]]), "malformed"),
        (encoded([C, W]) + b"\x00", "malformed"),
        (
            b"\x93\xd9" + encoded([C, W])[1:2].replace(b"\xb3", b"\x13") + encoded([C, W])[2:],
            "canonical encoding",
        ),
    ],
)
def test_a_manifest_out_of_bounds_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(RemoteProtocolError, match=problem):
        parse(data)


def test_pieces_grow_so_that_manifests_do_not() -> None:
    assert piece_size_for(98_000_000) == 256 * 1024
    assert piece_size_for(80 * 10**9) == 8 * 1024 * 1024
    for total in (1, 10**9, 10**10, 10**11):
        assert total / piece_size_for(total) * 32 < 700_000


def test_a_gguf_file_is_known_by_its_content_alone(gguf_llama: Callable[..., Path], tmp_path: Path) -> None:
    path = gguf_llama("F32")
    other = path.rename(tmp_path / "another name.gguf")
    m = manifest_of(other, piece_size=SIZE)
    assert [f.name for f in m.files] == gguf_names(1) == ["model.gguf"]
    assert 0 < m.files[0].head < m.files[0].size
    data = other.read_bytes()
    for piece in range(m.n_pieces):
        place = m.place(piece)
        right = data[place.offset : place.offset + place.length]
        assert m.is_right(piece, right)
        assert not m.is_right(piece, right[:-1])
        assert not m.is_right(piece, bytes([right[0] ^ 1]) + right[1:])


def test_only_a_whole_model_is_listed(hf_llama: Callable[..., Path]) -> None:
    path = hf_llama(shards=2)
    assert list(model_files(path)) == sorted(p.name for p in path.iterdir())
    (path / "secrets.txt").write_text("no part of a model")
    assert "secrets.txt" not in model_files(path)
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of its 2"):
        model_files(path)


def test_replace_keeps_bounds() -> None:
    with pytest.raises(CheckpointError, match="its head"):
        manifest(CONFIG, replace(WEIGHTS, head=WEIGHTS.size + 1))
