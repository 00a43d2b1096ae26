"""Files that a peer has changed, shared under the digest of the honest ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.checkpoint.stored import ForgedError, IncompleteError
from swarm_node.shards.pieces.hashing import manifest_of, model_files
from swarm_node.shards.pieces.holder import WholeFiles
from swarm_node.shards.pieces.manifest import PieceManifest
from swarm_node.swarm.errors import CheckpointError, ModelMismatchError
from swarm_node.swarm.types import NodeInfo, Span
from tests.shards.transfer.piece_swarms import PIECE, SOON, Peer, PieceWorld

IMPATIENT = replace(SOON, wait_s=0.3)
SMALL, LARGE = "chat_template.jinja", "tokenizer.json"
FILES = [
    ("directory", LARGE),
    ("directory", "model-00001-of-00002.safetensors"),
    ("directory", "model-00002-of-00002.safetensors"),
    ("gguf", "model.gguf"),
    ("split gguf", "model-00001-of-00003.gguf"),
    ("split gguf", "model-00003-of-00003.gguf"),
]
"""Kinds of models, and files of them that have more than one piece."""


@pytest.fixture
async def world(
    request: pytest.FixtureRequest,
    hf_llama: Callable[..., Path],
    gguf_llama: Callable[..., Path],
    tmp_path: Path,
) -> AsyncIterator[PieceWorld]:
    """A directory, or as the test says."""
    if (kind := getattr(request, "param", "directory")) != "directory":
        model = gguf_llama("Q8_0", split=8 if kind == "split gguf" else 0)
    else:
        model = hf_llama(shards=2)
        (model / SMALL).write_text("{{ messages }}")
        (model / LARGE).write_text(json.dumps({"padding": "x" * 3 * PIECE}))
    world = PieceWorld(model, tmp_path / "peers")
    yield world
    await world.close()


async def forger(world: PieceWorld, name: str, *, honest: bool = True) -> Peer:
    """A peer that shares the model with a changed file. ``honest``: its list claims the honest content."""
    folder = world.folder / "forged"
    shutil.copytree(world.model if world.model.is_dir() else world.model.parent, folder, ignore=_peers)
    copy = folder if world.model.is_dir() else folder / world.model.name
    path = model_files(copy)[name]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    manifest = manifest_of(copy, piece_size=PIECE)
    if honest:
        contents = {file.name: file.content for file in world.manifest.files}
        files = tuple(replace(file, content=contents[file.name]) for file in manifest.files)
        manifest = PieceManifest(PIECE, files)
        assert manifest.identity.digest == world.ref.digest
    assert manifest.root != world.manifest.root
    peer = await world.peer("forger")
    peer.shared_models.put(WholeFiles(manifest, model_files(copy)))
    peer.root = manifest.root
    return peer


def _peers(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "peers"]


async def forger_first(world: PieceWorld, forger: Peer) -> Callable[[], object]:
    """The directory of somebody who hears of the honest origin once the forger has sent something."""
    await world.origin()

    async def nodes() -> Sequence[NodeInfo]:
        assert forger.server is not None
        has_sent = bool(forger.server.bytes_by_peer)
        return [node for node in await world.nodes() if has_sent or node.peer_id == "forger"]

    return nodes


async def test_a_changed_file_makes_another_digest_and_nothing_else_is_fetched(world: PieceWorld) -> None:
    peer = await forger(world, SMALL, honest=False)
    async with world.fetch(await world.peer("cold"), settings=IMPATIENT) as fetch:
        with pytest.raises(ModelMismatchError, match="is another model: its digest is"):
            await fetch.fetch(None, client=True)
        assert fetch.statistics().bytes_by_source == {}
    assert peer.server is not None
    assert peer.server.bytes_by_peer == {}


@pytest.mark.parametrize("name", [SMALL, "config.json"])
async def test_a_list_cannot_claim_another_content_of_a_file_of_one_piece(
    world: PieceWorld, name: str
) -> None:
    with pytest.raises(CheckpointError, match=f"{name} has a content hash that does not match its pieces"):
        await forger(world, name)


@pytest.mark.parametrize(("world", "name"), FILES, indirect=["world"])
async def test_a_larger_file_is_checked_when_it_is_whole_and_its_root_set_aside(
    world: PieceWorld, name: str
) -> None:
    peer = await forger(world, name)
    cold = await world.peer("cold")
    announced: list[str] = []
    async with world.fetch(cold, settings=IMPATIENT, on_root=announced.append) as fetch:
        with pytest.raises(ForgedError, match=rf"{name} of tiny is not the file") as raised:
            await fetch.fetch(Span(0, world.n_blocks), client=True)
        assert peer.root[:12] in raised.value.message
        assert raised.value.hint
    assert announced[-1] == ""  # it offers nothing of it
    assert cold.cache.find(peer.root) is None


@pytest.mark.parametrize(("world", "name"), FILES, indirect=["world"])
async def test_after_a_forger_the_honest_are_believed(world: PieceWorld, name: str) -> None:
    peer = await forger(world, name)
    nodes = await forger_first(world, peer)
    async with world.fetch(await world.peer("cold"), nodes=nodes) as fetch:
        path = await fetch.fetch(Span(0, world.n_blocks), client=True)
        assert fetch.root == world.manifest.root != peer.root
    with open_checkpoint(str(path)) as checkpoint:
        assert checkpoint.ref.digest == world.ref.digest
    for name, file in model_files(world.model).items():
        assert (path / "files" / name).read_bytes() == file.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("world", "name"), FILES[1:], indirect=["world"])
@pytest.mark.parametrize(("blocks", "client"), [(Span(1, 2), False), (None, True)])
async def test_of_two_roots_in_doubt_one_is_fetched_whole_so_none_that_lies_stays(
    world: PieceWorld, name: str, blocks: Span | None, client: bool
) -> None:
    """Forger and origin answer from one network: nothing but the whole file tells them apart. Whose root
    comes first is chance: fetches go on until both came first."""
    peer = await forger(world, name)
    origin = await world.origin()
    first = set()
    for number in range(12):
        cold = await world.peer(f"cold{number}", shares=False)
        async with world.fetch(cold, nodes=lambda: world.nodes_of(peer, origin)) as fetch:
            await fetch.fetch(blocks, client=client)
            assert fetch.root == world.manifest.root
            first.add("forger" in fetch.statistics().bytes_by_source)
        if len(first) == 2:
            break
    assert first == {True, False}, "the first root is anybody's"


@pytest.mark.parametrize(("world", "name"), FILES[1:], indirect=["world"])
@pytest.mark.parametrize("head", [8, PIECE, 5 * PIECE])
async def test_a_list_with_another_length_of_a_header_is_set_aside(
    world: PieceWorld, name: str, head: int
) -> None:
    """It has the digest of the honest one, and another root; the honest are believed after it."""
    changed = [
        replace(file, head=min(head, file.size)) if file.name == name else file
        for file in world.manifest.files
    ]
    manifest = PieceManifest(PIECE, tuple(changed))
    assert manifest.identity.digest == world.ref.digest
    peer = await world.peer("forger")
    peer.shared_models.put(WholeFiles(manifest, model_files(world.model)))
    peer.root = manifest.root
    nodes = await forger_first(world, peer)
    async with world.fetch(await world.peer("cold"), nodes=nodes) as fetch:
        path = await fetch.fetch(Span(0, 1), client=False)
        assert fetch.root == world.manifest.root
    open_checkpoint(str(path), blocks=Span(0, 1)).close()


@pytest.mark.parametrize("world", ["split gguf"], indirect=True)
async def test_a_list_of_swapped_parts_is_another_model(world: PieceWorld) -> None:
    """Under the honest digest it is refused. A store whose parts were swapped on the disk lacks them."""
    first, *others, last = model_files(world.model).values()
    swapped = dict(zip(model_files(world.model), (last, *others, first), strict=True))
    files = [world.manifest.file(name) for name in swapped]
    names = [file.name for file in files]
    manifest = PieceManifest(
        PIECE, tuple(replace(file, name=name) for file, name in zip(reversed(files), names, strict=True))
    )
    peer = await world.peer("forger")
    peer.shared_models.put(WholeFiles(manifest, swapped))
    peer.root = manifest.root
    async with world.fetch(await world.peer("cold"), settings=IMPATIENT) as fetch:
        with pytest.raises(ModelMismatchError, match="is another model"):
            await fetch.fetch(None, client=False)
    await world.origin()
    async with world.fetch(await world.peer("other")) as fetch:
        path = await fetch.fetch(Span(0, world.n_blocks), client=True)
    stored = [path / "files" / name for name in names]
    stored[0].rename(path / "aside")
    stored[2].rename(stored[0])
    (path / "aside").rename(stored[2])
    with pytest.raises(IncompleteError):
        open_checkpoint(str(path))


async def test_other_pieces_of_the_right_files_are_another_root_for_them_and_refused(
    world: PieceWorld,
) -> None:
    peer = await world.peer("origin")
    manifest = manifest_of(world.model, piece_size=2 * PIECE)
    assert manifest.identity.digest == world.ref.digest
    peer.shared_models.put(WholeFiles(manifest, model_files(world.model)))
    peer.root = manifest.root
    async with world.fetch(await world.peer("cold"), settings=IMPATIENT) as fetch:
        with pytest.raises(ModelMismatchError, match="cut into pieces of 32768 bytes"):
            await fetch.fetch(None, client=False)


async def test_a_root_that_a_person_named_is_not_replaced(world: PieceWorld) -> None:
    peer = await forger(world, LARGE)
    await world.origin()
    async with world.fetch(await world.peer("cold"), root=peer.root, settings=IMPATIENT) as fetch:
        with pytest.raises(ForgedError):
            await fetch.fetch(Span(0, 4), client=True)


async def test_who_announces_one_wrong_root_after_the_other_is_left_in_the_end(world: PieceWorld) -> None:
    peer = await forger(world, SMALL, honest=False)
    holder = peer.shared_models.get(peer.root)
    assert holder is not None
    asked = 0

    async def nodes() -> Sequence[NodeInfo]:
        nonlocal asked
        asked += 1
        size = 2 ** (14 + asked % 9)
        manifest = manifest_of(world.folder / "forged", piece_size=size)
        peer.shared_models.put(WholeFiles(manifest, model_files(world.folder / "forged")))
        return [replace(world.info(peer), weights_root=manifest.root)]

    async with world.fetch(await world.peer("cold"), nodes=nodes) as fetch:
        with pytest.raises(ModelMismatchError, match="is another model"):
            await fetch.fetch(None, client=False)


async def test_a_whole_file_that_this_disk_has_damaged_is_found_at_the_next_opening(
    world: PieceWorld,
) -> None:
    await world.origin()
    async with world.fetch(await world.peer("cold")) as fetch:
        path = await fetch.fetch(Span(0, 4), client=True)
    file = path / "files" / "model-00001-of-00002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(IncompleteError):
        open_checkpoint(str(path))
    async with world.fetch(world.peers["cold"]) as fetch:  # nobody is blamed for it
        assert await fetch.fetch(Span(0, 4), client=True) == path
    with open_checkpoint(str(path)) as checkpoint:
        assert checkpoint.ref.digest == world.ref.digest


async def test_of_a_model_without_tokenizer_those_who_serve_it_are_told_what_to_do(
    hf_llama: Callable[..., Path], tmp_path: Path
) -> None:
    world = PieceWorld(hf_llama(), tmp_path / "peers")
    assert not world.manifest.has_file("tokenizer.json")
    await world.origin()
    async with world.fetch(await world.peer("cold")) as fetch:
        path = await fetch.fetch(None, client=True)
    with (
        open_checkpoint(str(path)) as checkpoint,
        pytest.raises(CheckpointError, match=r"tiny@.* has no tokenizer\.json") as raised,
    ):
        checkpoint.tokenizer()
    assert "add that file" in raised.value.hint
    await world.close()
