"""Sources that lie, and askers that want too much: each loses by it alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.pieces.hashing import manifest_of
from swarm_node.shards.pieces.manifest import PieceManifest
from swarm_node.shards.transfer import schedule, weights_root
from swarm_node.shards.transfer.messages import (
    ASKER_MAX_FRAME,
    HOLDER_MAX_FRAME,
    PIECE_MESSAGES,
    WEIGHTS_PROTOCOL,
    Ask,
    Elsewhere,
    Get,
    GetManifest,
    Have,
    Holds,
    Manifest,
    Piece,
    PieceError,
    PieceMessage,
)
from swarm_node.shards.transfer.upload_limits import BURST_S, RateLimit, ServeLimits, Uploads
from swarm_node.swarm.errors import ErrorCode, ModelMismatchError, NetworkError, StreamClosedError
from swarm_node.swarm.fairness.shares import Holder
from swarm_node.swarm.links.message_stream import MessageStream
from swarm_node.swarm.naming.witnesses import Answers
from swarm_node.swarm.transport.interface import Stream
from swarm_node.swarm.types import Span
from tests.doubles.fake_swarm import until
from tests.shards.transfer.piece_swarms import SOON, PieceWorld

IMPATIENT = replace(SOON, wait_s=0.3)
Liar = Callable[[PieceWorld, MessageStream[PieceMessage], Get], Awaitable[None]]


@pytest.fixture
async def world(hf_llama: Callable[..., Path], tmp_path: Path) -> AsyncIterator[PieceWorld]:
    world = PieceWorld(hf_llama(shards=2), tmp_path / "peers")
    yield world
    await world.close()


# Sources.


async def liar(world: PieceWorld, answer: Liar, *, before: PieceMessage | None = None) -> None:
    """A peer called ``liar`` that says it has everything."""
    peer = await world.peer("liar", shares=False)
    peer.root = world.manifest.root

    async def handle(stream: Stream) -> None:
        link: MessageStream[PieceMessage] = MessageStream(stream, PIECE_MESSAGES)
        try:
            assert isinstance(await link.receive(), Ask)
            await link.send(before or Holds(world.manifest.n_pieces))
            while True:
                match await link.receive():
                    case GetManifest():
                        await link.send(Manifest(world.manifest.encoded))
                    case Get() as get:
                        await answer(world, link, get)
        except StreamClosedError:
            pass

    await peer.transport.serve(WEIGHTS_PROTOCOL, handle)


async def wrong_bytes(world: PieceWorld, link: MessageStream[PieceMessage], get: Get) -> None:
    await link.send(Piece(get.piece, bytes(world.manifest.size_of(get.piece))))


async def too_short(world: PieceWorld, link: MessageStream[PieceMessage], get: Get) -> None:
    await link.send(Piece(get.piece, b"x"))


async def unasked(world: PieceWorld, link: MessageStream[PieceMessage], get: Get) -> None:
    await link.send(Piece((get.piece + 1) % world.manifest.n_pieces, b"x"))
    await link.send(Piece(world.manifest.n_pieces + 5, b"x"))


async def no_such_piece(world: PieceWorld, link: MessageStream[PieceMessage], get: Get) -> None:
    await link.send(Have((world.manifest.n_pieces,)))


async def a_question(world: PieceWorld, link: MessageStream[PieceMessage], get: Get) -> None:
    await link.send(Get(0))


async def no_frame(world: PieceWorld, link: MessageStream[PieceMessage], get: Get) -> None:
    link.stream.write([b"HTTP/1.1 200 OK\r\n\r\n"])


async def huge_frame(world: PieceWorld, link: MessageStream[PieceMessage], get: Get) -> None:
    link.stream.write([b"SW\x06\x00\x00\x00\xff\xff\xff\xff"])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (wrong_bytes, "wrong bytes"),
        (too_short, "wrong bytes"),
        (unasked, "without a request"),
        (no_such_piece, "the model does not have"),
        (a_question, "PIECE was expected"),
        (no_frame, "not a frame"),
        (huge_frame, "at most"),
    ],
)
async def test_a_source_that_lies_is_banned_and_the_rest_comes_from_others(
    world: PieceWorld, answer: Liar, reason: str
) -> None:
    await liar(world, answer)
    async with world.fetch(await world.peer("cold")) as fetch:
        fetching = asyncio.create_task(fetch.fetch(Span(0, 4), client=True))
        for _ in range(200):  # the liar comes first
            await asyncio.sleep(0.002)
            if fetch._health.is_banned("liar", asyncio.get_running_loop().time()):
                break
        await world.origin()
        path = await fetching
        statistics = fetch.statistics()
    assert reason in statistics.banned["liar"]
    assert statistics.bytes_by_source.keys() == {"origin"}
    with open_checkpoint(str(path)) as checkpoint:
        assert checkpoint.ref.digest == world.ref.digest


@pytest.mark.parametrize(
    "before", [Holds(7, b""), Holds(131072, bytes(131072 // 8)), Have((1,)), Manifest(b"x")]
)
async def test_a_source_that_describes_itself_wrongly_is_banned(
    world: PieceWorld, before: PieceMessage
) -> None:
    await liar(world, wrong_bytes, before=before)
    await world.origin()
    async with world.fetch(await world.peer("cold")) as fetch:
        await fetch.fetch(None, client=False)
        assert fetch.statistics().bytes_by_source.keys() == {"origin"}
        assert "liar" in fetch.statistics().banned


async def test_a_manifest_that_is_not_the_one_announced(world: PieceWorld) -> None:
    other = PieceWorld(world.model, world.folder)
    other.manifest = replace_size(world)
    other.network, other.peers = world.network, world.peers
    await liar(other, wrong_bytes)
    world.peers["liar"].root = world.manifest.root
    async with world.fetch(await world.peer("cold"), settings=IMPATIENT) as fetch:
        with pytest.raises(NetworkError, match="no peer gave"):
            await fetch.fetch(None, client=False)
        assert "not the one asked for" in fetch.statistics().banned["liar"]


def replace_size(world: PieceWorld) -> PieceManifest:
    return manifest_of(world.model, piece_size=32 * 1024)


async def test_a_damaged_origin_is_found_out(world: PieceWorld) -> None:
    """Its disk has changed under it: it sends none of that, and nobody takes it for a liar."""
    origin = await world.origin()
    name = max(world.manifest.files, key=lambda f: f.size).name
    holder = origin.shared_models.get(world.manifest.root)
    path = holder._files[name]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # nobody noticed
    async with world.fetch(await world.peer("cold"), settings=IMPATIENT) as fetch:
        with pytest.raises(NetworkError, match="no peer gave"):
            await fetch.fetch(Span(0, 4), client=True)
        assert fetch.statistics().banned == {}


async def mute(world: PieceWorld, name: str, leaves: type, drips: bool = False) -> None:
    """A peer that says it has everything and never answers one kind of request, or with a byte a moment."""
    peer = await world.peer(name, shares=False)
    peer.root = world.manifest.root

    async def handle(stream: Stream) -> None:
        link: MessageStream[PieceMessage] = MessageStream(stream, PIECE_MESSAGES)
        try:
            while True:
                message = await link.receive()
                if isinstance(message, leaves):
                    while drips:
                        stream.write([b"S"])
                        await asyncio.sleep(0.05)
                elif isinstance(message, Ask):
                    await link.send(Holds(world.manifest.n_pieces))
                elif isinstance(message, GetManifest):
                    await link.send(Manifest(world.manifest.encoded))
        except StreamClosedError:
            pass

    await peer.transport.serve(WEIGHTS_PROTOCOL, handle)


@pytest.mark.parametrize(("leaves", "drips"), [(Ask, False), (GetManifest, False), (Get, False), (Get, True)])
async def test_sources_that_say_nothing_hold_up_nobody(
    world: PieceWorld, leaves: type, drips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than places, and all are there before the honest one."""
    monkeypatch.setattr(schedule, "STALL_S", 0.1)
    settings = replace(SOON, sources=3, answer_s=0.2, hedge_s=0.1, wait_s=10.0)
    for number in range(5):
        await mute(world, f"a{number}", leaves, drips)
    await world.origin()
    async with asyncio.timeout(8), world.fetch(await world.peer("cold"), settings=settings) as fetch:
        await fetch.fetch(Span(0, 4), client=True)


async def test_one_who_points_to_nobody_costs_nothing(world: PieceWorld) -> None:
    async def elsewhere(world: PieceWorld, link: MessageStream[PieceMessage], get: Get) -> None:
        if get.insist:
            await wrong_bytes(world, link, get)
        else:
            await link.send(Elsewhere(get.piece, "nobody", ("/ip4/192.0.2.1/tcp/1",)))

    await liar(world, elsewhere)
    await world.origin()
    async with world.fetch(await world.peer("cold")) as fetch:
        await fetch.fetch(Span(0, 4), client=True)
        assert fetch.statistics().bytes_by_source.keys() == {"origin"}


@pytest.mark.slow
@pytest.mark.parametrize("liars", [1, 5])
async def test_another_root_in_a_record_stops_no_fetch(
    world: PieceWorld, liars: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever is tried first: nobody gives anything under the others."""
    await world.origin()
    for number in range(liars):
        (await world.peer(f"other{number}")).root = f"{number:x}" * 64
    tried: list[str] = []
    monkeypatch.setattr(weights_root.Witnesses, "ask", nobody_answers)
    settings = replace(SOON, wait_s=0.1)
    for number in range(4):
        name = f"cold{number}"  # orders them differently each time
        async with world.fetch(await world.peer(name, shares=False), settings=settings) as fetch:
            await fetch.fetch(None, client=False)
            assert fetch.root == world.manifest.root
            tried += fetch._unanswered
    assert tried, "some were tried first"


async def test_what_nobody_gives_under_any_root_is_said_and_may_come_later(world: PieceWorld) -> None:
    for number in range(2):
        (await world.peer(f"other{number}")).root = f"{number:x}" * 64
    async with world.fetch(await world.peer("cold"), settings=replace(SOON, wait_s=0.2)) as fetch:
        with pytest.raises(NetworkError, match="no peer gave"):
            await fetch.fetch(None, client=False)
        await world.origin()
        await fetch.fetch(None, client=False)
        assert fetch.root == world.manifest.root


@pytest.mark.slow
async def test_a_root_that_is_given_is_not_left_for_another(world: PieceWorld) -> None:
    await world.origin()
    (await world.peer("other")).root = "ab" * 32
    async with world.fetch(await world.peer("sure"), root=world.manifest.root) as fetch:
        await fetch.fetch(None, client=False)
    async with world.fetch(await world.peer("wrong"), root="ab" * 32) as fetch:
        with pytest.raises(NetworkError):
            await fetch.fetch(None, client=False)


async def nobody_answers(*_: object) -> Answers:
    return Answers()


async def test_another_model_under_the_name(world: PieceWorld) -> None:
    await world.origin()
    world.ref = replace(world.ref, digest="cd" * 32)
    async with world.fetch(await world.peer("cold")) as fetch:
        with pytest.raises(ModelMismatchError, match="is another model"):
            await fetch.fetch(None, client=False)


# Askers.


class Asker:
    def __init__(self, link: MessageStream[PieceMessage]) -> None:
        self.link = link

    @classmethod
    async def of(cls, world: PieceWorld, name: str = "asker", root: str = "") -> Asker:
        stream = await world.network.transport(name).open_stream("origin", WEIGHTS_PROTOCOL)
        asker = cls(MessageStream(stream, PIECE_MESSAGES, ASKER_MAX_FRAME))
        await asker.link.send(Ask(bytes.fromhex(root or world.manifest.root)))
        return asker

    async def answer(self, message: PieceMessage | None = None) -> PieceMessage:
        if message is not None:
            await self.link.send(message)
        return await self.link.receive()

    async def ended(self) -> PieceError:
        """Why the other side wants no more of this stream."""
        while not isinstance(last := await self.answer(), PieceError) or last.piece is not None:
            pass
        self.link.close()
        return last


async def test_a_piece_and_its_bounds(world: PieceWorld) -> None:
    await world.origin()
    asker = await Asker.of(world)
    holds = await asker.answer()
    assert isinstance(holds, Holds)
    assert holds.held().all()
    piece = await asker.answer(Get(1))
    assert isinstance(piece, Piece)
    assert world.manifest.is_right(1, piece.payload)
    refused = await asker.answer(Get(world.manifest.n_pieces))
    assert isinstance(refused, PieceError)
    assert refused.piece == world.manifest.n_pieces


async def test_what_was_not_shared_cannot_be_asked_for(world: PieceWorld) -> None:
    origin = await world.origin()
    assert (await (await Asker.of(world, root="ab" * 32)).ended()).code is ErrorCode.UNSUPPORTED
    asker = await Asker.of(world)
    await asker.answer()
    origin.shared_models.remove(world.manifest.root)
    await asker.link.send(Get(0))
    assert "any more" in (await asker.ended()).message


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([Get(0)], "ASK was expected"),
        ([Ask(bytes(32), maddrs=("/ip4/192.0.2.1/tcp/1",) * 12), Ask(bytes(32))], "not shared"),
    ],
)
async def test_nonsense_ends_the_stream(world: PieceWorld, said: list[PieceMessage], reason: str) -> None:
    await world.origin()
    stream = await world.network.transport("asker").open_stream("origin", WEIGHTS_PROTOCOL)
    asker = Asker(MessageStream(stream, PIECE_MESSAGES))
    for message in said:
        await asker.link.send(message)
    assert reason in (await asker.ended()).message


@pytest.mark.parametrize(
    "data", [b"\x00" * 64, b"SW\x05\x00\x00\x00\x00\x10\x00\x00", b"SW\x63\x00\x00\x01\x00\x00\x00\x00\x80"]
)
async def test_garbage_ends_the_stream(world: PieceWorld, data: bytes) -> None:
    await world.origin()
    asker = await Asker.of(world)
    await asker.answer()
    asker.link.stream.write([data])
    assert (await asker.ended()).code in (ErrorCode.BAD_FRAME, ErrorCode.UNKNOWN_KIND)
    assert len(data) < HOLDER_MAX_FRAME


async def test_one_peer_has_only_so_many_streams(world: PieceWorld) -> None:
    origin = await world.origin(limits=ServeLimits(streams_per_peer=2))
    askers = [await Asker.of(world) for _ in range(3)]
    assert "2 streams of yours" in (await askers[2].ended()).message
    assert isinstance(await (await Asker.of(world, "another")).answer(), Holds)
    askers[0].link.close()
    await until(lambda: origin.server._uploads.streams == 2)
    assert isinstance(await (await Asker.of(world)).answer(), Holds)


async def test_all_peers_together_have_only_so_many_streams(world: PieceWorld) -> None:
    await world.origin(limits=ServeLimits(streams=2))
    for name in ("a", "b"):
        assert isinstance(await (await Asker.of(world, name)).answer(), Holds)
    assert "2 streams are open" in (await (await Asker.of(world, "c")).ended()).message


async def test_one_peer_takes_the_model_only_so_often(world: PieceWorld) -> None:
    await world.origin(limits=ServeLimits(copies_per_hour=1))
    asker = await Asker.of(world)
    await asker.answer()
    for piece in range(world.manifest.n_pieces):
        assert isinstance(await asker.answer(Get(piece)), Piece)
    refused = await asker.answer(Get(0))
    assert isinstance(refused, PieceError)
    assert refused.code is ErrorCode.OVERLOADED


async def test_asking_again_and_again_for_nothing(world: PieceWorld) -> None:
    await world.origin(limits=ServeLimits(refusals=3, manifests=1))
    asker = await Asker.of(world)
    await asker.answer()
    for _ in range(3):
        await asker.answer(Get(world.manifest.n_pieces))
    await asker.link.send(Get(world.manifest.n_pieces))
    assert "too many pieces" in (await asker.ended()).message
    asker = await Asker.of(world)
    await asker.answer()
    assert isinstance(await asker.answer(GetManifest()), Manifest)
    await asker.link.send(GetManifest())
    assert "too often" in (await asker.ended()).message


async def test_one_who_asks_and_does_not_speak_or_read(world: PieceWorld) -> None:
    origin = await world.origin(limits=ServeLimits(hello_s=0.05, idle_s=0.05, send_s=0.05))
    mute = await world.network.transport("mute").open_stream("origin", WEIGHTS_PROTOCOL)
    assert await mute.read() == b""
    idle = await Asker.of(world, "idle")
    await idle.answer()
    assert await idle.link.stream.read() == b""
    deaf = await Asker.of(world, "deaf")
    for _ in range(80):  # more than a stream holds
        await deaf.link.send(Get(1))
    await until(lambda: origin.server._uploads.streams == 0)


async def test_cold_peers_are_told_who_has_a_piece(world: PieceWorld) -> None:
    await world.origin()
    first, second = [await Asker.of(world, name) for name in ("first", "second")]
    stream = await world.network.transport("serving").open_stream("origin", WEIGHTS_PROTOCOL)
    serving = Asker(MessageStream(stream, PIECE_MESSAGES, ASKER_MAX_FRAME))
    await serving.link.send(Ask(bytes.fromhex(world.manifest.root), True, ("/ip4/192.0.2.1/tcp/1",)))
    for asker in (first, second, serving):
        await asker.answer()
    assert isinstance(await first.answer(Get(3)), Piece)
    assert isinstance(await second.answer(Get(3)), Piece)  # the first does not serve
    assert isinstance(await serving.answer(Get(4)), Piece)
    assert await first.answer(Get(4)) == Elsewhere(4, "serving")  # where it listens is not proven
    assert isinstance(await second.answer(Get(4, insist=True)), Piece)
    assert isinstance(await first.answer(Get(4)), Piece)  # it comes back: it did not find it there


def test_asks_are_counted_by_the_minute() -> None:
    uploads = Uploads(ServeLimits(asks_per_minute=2))
    for _ in range(2):
        assert uploads.enter(Holder("p"), 0.0) == ""
        uploads.leave(Holder("p"))
    assert "2 times a minute" in uploads.enter(Holder("p"), 59.0)
    assert uploads.enter(Holder("q"), 59.0) == ""
    assert uploads.enter(Holder("p"), 61.0) == ""


def test_the_places_of_a_crowd_go_to_who_comes_from_elsewhere() -> None:
    uploads = Uploads(ServeLimits(streams=4, streams_per_peer=2))
    crowd = [Holder(f"sybil{number}", "net") for number in range(4)]
    for holder in crowd:
        assert uploads.loser(holder, 0.0) is None
        assert uploads.enter(holder, 0.0) == ""
    assert uploads.loser(Holder("sybil9", "net"), 0.0) is None
    me = Holder("me", "home")
    for _ in range(2):
        loser = uploads.loser(me, 0.0)
        assert loser in crowd
        uploads.leave(loser)
        assert uploads.enter(me, 0.0) == ""
    assert uploads.loser(me, 0.0) is None
    assert "2 streams of yours" in uploads.enter(me, 0.0)


def test_a_bandwidth_is_kept() -> None:
    cap, now, waited = RateLimit(1000.0), 100.0, 0.0
    for _ in range(50):
        waited = cap.delay(100, now)
        now += waited
    assert now == pytest.approx(100.0 + 4.9 - BURST_S, abs=0.01)
    assert RateLimit(None).delay(10**9, 0.0) == 0.0
