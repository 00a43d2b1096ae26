from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.checkpoint.stored import IncompleteError
from swarm_node.shards.formats.files.mapped_file import AbsentError
from swarm_node.shards.formats.tensors import needed_tensors
from swarm_node.shards.pieces import checked
from swarm_node.shards.pieces.manifest import PieceManifest
from swarm_node.shards.pieces.store import PieceStore
from swarm_node.shards.transfer.upload_limits import BURST_S, RateLimit, ServeLimits
from swarm_node.swarm.errors import CheckpointError, NetworkError
from swarm_node.swarm.types import Span
from tests import ROOT
from tests.shards.transfer.piece_swarms import PIECE, SOON, PieceWorld


@pytest.fixture(params=[0, 8], ids=["one file", "split"])
async def gguf_world(
    request: pytest.FixtureRequest, gguf_llama: Callable[..., Path], tmp_path: Path
) -> AsyncIterator[PieceWorld]:
    world = PieceWorld(gguf_llama("F32", blocks=3, split=request.param), tmp_path / "peers")
    yield world
    await world.close()


@pytest.fixture
async def world(hf_llama: Callable[..., Path], tmp_path: Path) -> AsyncIterator[PieceWorld]:
    """A model of 8 blocks in 3 files, each block some pieces."""
    path = hf_llama(shards=3, num_hidden_layers=8, hidden_size=128, intermediate_size=192, vocab_size=300)
    world = PieceWorld(path, tmp_path / "peers")
    yield world
    await world.close()


def same_tensors(a: Checkpoint, b: Checkpoint, names: list[str]) -> bool:
    return all(
        np.array_equal(a.tensor(name).dequantize(), b.tensor(name).dequantize())
        for name in names
        if a.has(name)
    )


async def test_a_span_of_a_gguf_file_comes_from_a_peer_and_nothing_else(gguf_world: PieceWorld) -> None:
    world = gguf_world
    await world.origin()
    async with world.fetch(await world.peer("cold")) as fetch:
        path = await fetch.fetch(Span(1, 2), client=False)
        fetched = sum(fetch.statistics().bytes_by_source.values())
    assert fetched < 0.4 * world.manifest.total_bytes
    with open_checkpoint(str(path), blocks=Span(1, 2)) as got, open_checkpoint(str(world.model)) as right:
        assert got.ref.digest == right.ref.digest
        assert same_tensors(got, right, needed_tensors(right.config, Span(1, 2), client=False))


async def test_a_client_of_a_gguf_model_takes_tokenizer_and_head(gguf_world: PieceWorld) -> None:
    world = gguf_world
    await world.origin()
    async with world.fetch(await world.peer("cold")) as fetch:
        path = await fetch.fetch(None, client=True)
        fetched = sum(fetch.statistics().bytes_by_source.values())
    assert fetched < 0.2 * world.manifest.total_bytes
    with open_checkpoint(str(path), client=True) as got, open_checkpoint(str(world.model)) as right:
        assert same_tensors(got, right, needed_tensors(right.config, None, client=True))
        assert got.tokenizer().encode("ab") == right.tokenizer().encode("ab")


@pytest.mark.parametrize("client", [False, True])
async def test_what_was_not_fetched_is_an_error_and_never_zeros(world: PieceWorld, client: bool) -> None:
    await world.origin()
    async with world.fetch(await world.peer("cold")) as fetch:
        path = await fetch.fetch(Span(2, 3), client=client)
    with open_checkpoint(str(path), blocks=Span(2, 3)) as got, open_checkpoint(str(world.model)) as right:
        needed = needed_tensors(right.config, Span(2, 3), client)
        assert same_tensors(got, right, needed)
        absent = 0
        for name in right.manifest:
            try:
                assert same_tensors(got, right, [name])
            except AbsentError:
                absent += 1
                assert name not in needed
        assert absent > 20


@pytest.mark.slow
@pytest.mark.parametrize("announced", [False, True])
async def test_three_cold_peers_take_each_byte_from_the_origin_about_once(
    world: PieceWorld, announced: bool
) -> None:
    """``announced``: they know of each other before they have anything to share, so each is refused by the
    others at first. Without each other they would take it three times."""
    sent = await _sent_to_three(world, announced)
    assert world.manifest.total_bytes * 0.95 < sent < world.manifest.total_bytes * 1.1


async def _sent_to_three(world: PieceWorld, announced: bool) -> int:
    """Bytes that one holder sends while three peers that begin with nothing fetch a model."""
    origin = await world.origin()
    cold = [await world.peer(name) for name in ("a", "b", "c")]
    for peer in cold:
        peer.root = world.manifest.root if announced else ""
    fetches = [world.fetch(peer) for peer in cold]
    everything = Span(0, world.n_blocks)
    paths = await asyncio.gather(*(fetch.fetch(everything, client=True) for fetch in fetches))
    with open_checkpoint(str(world.model)) as right:
        for path in paths:
            with open_checkpoint(str(path)) as got:
                assert same_tensors(got, right, list(right.manifest))
    for fetch in fetches:
        await fetch.close()
    return sum(origin.server.bytes_by_peer.values())


async def test_spans_of_their_own_come_with_little_beside_them(world: PieceWorld) -> None:
    origin = await world.origin()
    fetches = [world.fetch(await world.peer(name)) for name in ("a", "b")]
    await asyncio.gather(*(fetches[i].fetch(Span(4 * i, 4 * i + 4), client=False) for i in (0, 1)))
    assert sum(origin.server.bytes_by_peer.values()) < world.manifest.total_bytes * 1.1
    for fetch in fetches:
        held = fetch.statistics().bytes_by_source
        assert sum(held.values()) < world.manifest.total_bytes * 0.75
        await fetch.close()


async def test_fetching_goes_on_where_it_was_left(world: PieceWorld) -> None:
    origin = await world.origin()
    peer = await world.peer("cold")
    async with world.fetch(peer) as fetch:
        await fetch.fetch(Span(0, 4), client=False)
    before = sum(origin.server.bytes_by_peer.values())
    async with world.fetch(peer) as fetch:
        await fetch.fetch(Span(0, 5), client=False)
        more = sum(fetch.statistics().bytes_by_source.values())
    assert 0 < more < before / 2
    async with world.fetch(peer) as fetch:  # all there: nobody is asked
        await world.network.transport("origin").close()
        await fetch.fetch(Span(0, 5), client=False)
        assert fetch.statistics().bytes_by_source == {}


def zero(world: PieceWorld, folder: Path, pieces: Sequence[int]) -> int:
    """Holes where there were bytes, as a power cut leaves them, found by the next process; how many bytes."""
    for piece in pieces:
        place = world.manifest.place(piece)
        path = folder / "files" / place.file.name
        path = path if path.exists() else path.with_name(f"{path.name}.part")
        with path.open("r+b") as file:
            file.seek(place.offset)
            file.write(bytes(place.length))
    checked._known.clear()
    return sum(map(world.manifest.size_of, pieces))


@pytest.mark.parametrize("where", ["header", "weights"])
async def test_holes_in_the_cache_are_fetched_again(world: PieceWorld, where: str) -> None:
    await world.origin()
    peer = await world.peer("cold")
    async with world.fetch(peer) as fetch:
        path = await fetch.fetch(Span(0, 4), client=False)
    name = max(world.manifest.files, key=lambda file: file.size).name
    every = world.manifest.pieces_of(name)
    with PieceStore(path, use=False) as store:
        held = [piece for piece in every if store.has(piece)]
    holes = held[:1] if where == "header" else held[2:4]
    nbytes = zero(world, path, holes)
    with pytest.raises(IncompleteError, match="of them damaged"):
        open_checkpoint(str(path), blocks=Span(0, 4))
    told: list[str] = []
    async with world.fetch(peer, on_remark=told.append) as fetch:
        assert await fetch.fetch(Span(0, 4), client=False) == path
        assert sum(fetch.statistics().bytes_by_source.values()) == nbytes
    pieces = "1 piece" if len(holes) == 1 else f"{len(holes)} pieces"
    assert told[-1].startswith(f"Damaged on this disk: {pieces} of {world.ref.name};")
    with open_checkpoint(str(path), blocks=Span(0, 4)) as got, open_checkpoint(str(world.model)) as right:
        assert same_tensors(got, right, needed_tensors(right.config, Span(0, 4), client=False))


async def test_a_peer_with_holes_shares_none_of_them(world: PieceWorld) -> None:
    """And is not taken for a liar: what it cannot give comes from the other."""
    await world.origin()
    peer = await world.peer("damaged")
    async with world.fetch(peer) as fetch:
        path = await fetch.fetch(Span(0, world.n_blocks), client=True)
    zero(world, path, range(0, world.manifest.n_pieces, 3))
    with PieceStore(path) as store:
        peer.shared_models.put(store)
        async with world.fetch(await world.peer("cold")) as fetch:
            got = await fetch.fetch(Span(0, world.n_blocks), client=True)
            statistics = fetch.statistics()
    assert statistics.banned == {}
    assert "damaged" in statistics.bytes_by_source
    assert sum(statistics.bytes_by_source.values()) == world.manifest.total_bytes
    with open_checkpoint(str(got)) as checkpoint, open_checkpoint(str(world.model)) as right:
        assert same_tensors(checkpoint, right, list(right.manifest))


_FETCHER = """
import asyncio, sys
from pathlib import Path
from tests.shards.transfer.piece_swarms import PIECE, PieceWorld
from swarm_node.shards.pieces import manifest
from swarm_node.shards.transfer.upload_limits import RateLimit
from swarm_node.swarm.types import Span

manifest.USUAL_PIECE = PIECE

async def main():
    world = PieceWorld(Path(sys.argv[1]), Path(sys.argv[2]))
    await world.origin()
    def told(done, total, label):
        print(done, flush=True)
    async with world.fetch(await world.peer("cold"), on_progress=told, rate=RateLimit(2e5)) as fetch:
        await fetch.fetch(Span(0, world.n_blocks), client=True)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_fetch_that_was_killed_goes_on(world: PieceWorld) -> None:
    command = [sys.executable, "-c", _FETCHER, str(world.model), str(world.folder)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    while int(await process.stdout.readline()) < 10 * PIECE:
        pass
    have = world.folder / "cold" / world.manifest.root / "have"
    async with asyncio.timeout(20):
        while not have.exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.01)
    process.kill()
    await process.wait()
    await world.origin()
    async with world.fetch(await world.peer("cold")) as fetch:
        path = await fetch.fetch(Span(0, world.n_blocks), client=True)
        assert sum(fetch.statistics().bytes_by_source.values()) < world.manifest.total_bytes
    with open_checkpoint(str(path), client=True) as got, open_checkpoint(str(world.model)) as right:
        assert same_tensors(got, right, list(right.manifest))


async def test_a_model_without_anybody_who_shares_it(world: PieceWorld) -> None:
    impatient = replace(SOON, wait_s=0.2)
    async with world.fetch(await world.peer("cold"), settings=impatient) as fetch:
        with pytest.raises(NetworkError, match="no peer shares"):
            await fetch.fetch(Span(0, 1), client=False)


async def test_opening_the_folder_of_files_with_holes_is_refused(gguf_world: PieceWorld) -> None:
    await gguf_world.origin()
    async with gguf_world.fetch(await gguf_world.peer("cold")) as fetch:
        path = await fetch.fetch(None, client=False)
    with pytest.raises(CheckpointError, match="has holes"):
        open_checkpoint(str(next((path / "files").glob("*.gguf.part"))))


async def test_a_model_that_mlx_has_quantized(hf_llama: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("mlx.core", reason="needs mlx")
    from tests.shards.mlx import mlx_checkpoints

    dense = hf_llama(hidden_size=128, intermediate_size=256, num_hidden_layers=12)
    world = PieceWorld(mlx_checkpoints.quantize_directory(dense, tmp_path / "q"), tmp_path / "peers")
    await world.origin()
    async with world.fetch(await world.peer("cold")) as fetch:
        path = await fetch.fetch(Span(2, 4), client=False)
        assert sum(fetch.statistics().bytes_by_source.values()) < world.manifest.total_bytes * 0.8
    with open_checkpoint(str(path), blocks=Span(2, 4)) as got, open_checkpoint(str(world.model)) as right:
        assert got.ref.digest == right.ref.digest
        assert same_tensors(got, right, needed_tensors(right.config, Span(2, 4), client=False))
    await world.close()


async def test_people_see_how_far_it_is_and_who_sends(world: PieceWorld) -> None:
    await world.origin("QmOriginabcdef")
    told: list[tuple[int, int, str]] = []
    peer = await world.peer("cold")
    async with world.fetch(peer, on_progress=lambda *seen: told.append(seen)) as fetch:
        await fetch.fetch(Span(0, 4), client=False)
        fetched = sum(fetch.statistics().bytes_by_source.values())
    ends = [done for done, total, _ in told if done == total and total]
    assert sum(ends) == fetched
    assert told[-1][2] == f"Fetching {world.ref.name} from …abcdef"
    assert "Looking for the weights" in told[0][2] or "Waiting for a peer" in told[0][2]


async def test_a_bound_on_bandwidth_holds(world: PieceWorld) -> None:
    await world.origin()
    bound = 3e6
    async with world.fetch(await world.peer("cold"), rate=RateLimit(bound)) as fetch:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await fetch.fetch(Span(0, 4), client=False)
        fetched = sum(fetch.statistics().bytes_by_source.values())
        assert loop.time() - began > fetched / bound - BURST_S - 0.2


async def test_what_no_peer_gives_comes_from_outside(world: PieceWorld) -> None:
    """As from the hub: the origin goes after the manifest and a part of the pieces."""
    origin = await world.origin(limits=ServeLimits(copies_per_hour=0.3))
    whole = origin.shared_models.get(world.manifest.root)
    asked: list[int] = []

    def hub(manifest: PieceManifest, piece: int) -> bytes:
        asked.append(piece)
        return whole.read(piece)

    async with world.fetch(await world.peer("cold"), last_resort=hub) as fetch:
        await fetch.fetch(Span(0, world.n_blocks), client=True)
        by_source = fetch.statistics().bytes_by_source
    assert by_source.keys() == {"origin", "the hub"}
    assert sum(by_source.values()) == world.manifest.total_bytes
    assert len(asked) == len(set(asked)) < world.manifest.n_pieces


async def test_a_wrong_answer_from_outside_is_found_out(world: PieceWorld) -> None:
    await world.origin(limits=ServeLimits(copies_per_hour=0.3))
    impatient = replace(SOON, wait_s=0.3)
    peer = await world.peer("cold")
    async with world.fetch(peer, last_resort=lambda *_: b"another version", settings=impatient) as fetch:
        with pytest.raises(NetworkError, match="wrong bytes"):
            await fetch.fetch(Span(0, world.n_blocks), client=True)


async def test_a_source_that_goes_is_replaced(world: PieceWorld) -> None:
    """In the middle; the rest comes from another."""
    for name in ("one", "two"):
        await world.origin(name)
    peer = await world.peer("cold")
    half = asyncio.Event()
    fetched = 0

    def on_progress(done: int, total: int, label: str) -> None:
        if total and done > total / 3:
            half.set()

    async with world.fetch(peer, on_progress=on_progress, rate=RateLimit(20e6)) as fetch:
        fetching = asyncio.create_task(fetch.fetch(Span(0, world.n_blocks), client=True))
        await half.wait()
        world.network.kill("one")
        world.peers["one"].root = ""
        await fetching
        fetched = sum(fetch.statistics().bytes_by_source.values())
    assert fetched == world.manifest.total_bytes
