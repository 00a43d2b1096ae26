"""The transport over real p2pd daemons on 127.0.0.1."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import psutil
import pytest

from swarm_node.swarm.errors import (
    ListenError,
    LocalNetworkError,
    NetworkError,
    OpenFilesError,
    PeerTimeoutError,
    PeerUnreachableError,
    StreamClosedError,
    UsageError,
)
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.protocol.messages import Step, Want
from swarm_node.swarm.protocol.wire import PROTOCOL_ID
from swarm_node.swarm.transport import addresses
from swarm_node.swarm.transport.address_groups import address_group
from swarm_node.swarm.transport.interface import NetworkChange, NetworkLost, NetworkRestored, Stream
from swarm_node.swarm.transport.p2pd import process, supervisor
from swarm_node.swarm.transport.p2pd import transport as p2pd
from swarm_node.swarm.transport.p2pd.maddrs import encode_maddr
from swarm_node.swarm.transport.p2pd.process import STALE_AGE, remove_stale_folders
from swarm_node.swarm.transport.p2pd.stream import P2pdStream
from swarm_node.swarm.transport.p2pd.transport import P2pdTransport
from tests.doubles.direct_peers import STRICT, echo, gets_parting_errors, strict
from tests.doubles.fake_swarm import until

pytestmark = pytest.mark.swarm

ECHO = "/echo/1"
STRANGER = "12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
Start = Callable[..., Awaitable[P2pdTransport]]


@pytest.fixture
async def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Starts transports that are closed at the end, with their sockets in a folder of this test."""
    folder = tempfile.mkdtemp(prefix="p2pd-", dir="/tmp")  # pytest's own paths are too long for sockets
    monkeypatch.setattr(tempfile, "tempdir", folder)
    started: list[P2pdTransport] = []

    async def create(*arguments: object, **options: object) -> P2pdTransport:
        started.append(await P2pdTransport.create(*arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield create
    await asyncio.gather(*(transport.close() for transport in started))
    assert sockets() == []
    shutil.rmtree(folder)  # key files of errors that hold their frames


async def linked(start: Start) -> tuple[P2pdTransport, P2pdTransport, Stream]:
    server, client = await asyncio.gather(start(), start(client_mode=True))
    await server.serve(ECHO, echo)
    return server, client, await client.open_stream(server.peer_id, ECHO, await server.maddrs())


def daemon_pid(transport: P2pdTransport) -> int:
    return transport.p2p._child.pid


async def freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110  nobody tells
        await asyncio.sleep(0.01)


def our_daemons() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.name() == "p2pd"]


def sockets() -> list[Path]:
    """The folders of sockets that are there now."""
    return [entry for entry in Path(tempfile.gettempdir()).iterdir() if entry.is_dir()]


async def test_streams_both_ways_with_proven_identities(start: Start) -> None:
    identity = Identity.generate()
    server = await start(identity)
    client = await start(initial_peers=await server.maddrs(), client_mode=True)
    seen: list[str] = []

    async def handler(stream: Stream) -> None:
        seen.append(stream.peer_id)
        await echo(stream)

    await server.serve(ECHO, handler)
    await client.serve(ECHO, handler)
    assert server.peer_id == identity.peer_id
    (maddr,) = await server.maddrs()
    assert maddr.startswith("/ip4/127.0.0.1/tcp/")
    assert maddr.endswith(f"/p2p/{identity.peer_id}")
    assert await client.maddrs() == ()

    there = await client.open_stream(server.peer_id, ECHO)
    back = await server.open_stream(client.peer_id, ECHO)  # a client that does not listen can be called back
    for stream in (there, back):
        stream.write([b"hello ", memoryview(b"there")])
        await stream.drain()
        assert await stream.read() == b"hello there"
    assert (there.peer_id, back.peer_id) == (server.peer_id, client.peer_id)
    assert set(seen) == {client.peer_id, server.peer_id}
    for maddr in (
        there.remote_maddr,
        back.remote_maddr,
        await server.remote_maddr(client.peer_id),
        await client.remote_maddr(server.peer_id),
    ):
        assert address_group(maddr) == "loopback"
    assert await server.remote_maddr(STRANGER) == ""


async def test_peers_find_each_other_through_a_common_one(start: Start) -> None:
    meeting = await start()
    where = await meeting.maddrs()
    a, b = await asyncio.gather(*(start(initial_peers=where) for _ in range(2)))
    await a.serve(ECHO, echo)
    stream = await b.open_stream(a.peer_id, ECHO)
    stream.write([b"found you"])
    assert await stream.read() == b"found you"


async def test_large_messages_and_addresses_that_strangers_garbled(start: Start) -> None:
    server, client = await asyncio.gather(start(), start(client_mode=True))

    async def handler(stream: Stream) -> None:
        connection = Connection(stream)
        await connection.send(await connection.receive())

    await server.serve(PROTOCOL_ID, handler)
    garbled = ("/ip4/300.1.1.1/tcp/1", "no address", "/foo/bar", f"/ip4/1.1.1.1/tcp/1/p2p/{STRANGER}")
    stream = await client.open_stream(server.peer_id, PROTOCOL_ID, (*garbled, *await server.maddrs()))
    connection = Connection(stream)
    step = Step(bytes(16), 1, 0, 1, Want.ALL, payload=os.urandom(6_000_000))
    sending = asyncio.create_task(connection.send(step))
    assert await connection.receive() == step
    await sending


async def test_a_writer_waits_for_a_reader_that_stopped(start: Start) -> None:
    server, client = await asyncio.gather(start(), start(client_mode=True))
    read_on = asyncio.Event()

    async def handler(stream: Stream) -> None:
        await read_on.wait()
        while await stream.read():
            pass

    await server.serve(ECHO, handler)
    stream = await client.open_stream(server.peer_id, ECHO, await server.maddrs())

    async def flood() -> None:
        for _ in range(16):
            stream.write([bytes(1 << 20)])
            await stream.drain()

    flooding = asyncio.create_task(flood())
    done, _ = await asyncio.wait([flooding], timeout=0.5)
    assert not done
    read_on.set()
    await asyncio.wait_for(flooding, 10)


async def test_a_parting_error_arrives_even_while_the_other_side_floods(start: Start) -> None:
    server, client = await asyncio.gather(start(), start(client_mode=True))
    await server.serve(STRICT, strict)
    await gets_parting_errors(client, server)


async def test_a_failing_handler_ends_its_stream_only(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    server, client, good = await linked(start)

    async def fails(stream: Stream) -> None:
        raise RuntimeError("handler bug")

    await server.serve("/fails/1", fails)
    with caplog.at_level(logging.ERROR):
        bad = await client.open_stream(server.peer_id, "/fails/1")
        assert await bad.read() == b""
    assert "handler bug" in caplog.text
    good.write([b"still here"])
    assert await good.read() == b"still here"


async def test_a_port_in_use_is_refused_by_its_number(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"port {port} on 127.0.0.1 is in use"):
            await start(host_maddrs=[f"/ip4/127.0.0.1/tcp/{port}"])
    first = await start()
    port = int((await first.maddrs())[0].split("/")[4])
    with pytest.raises(ListenError, match=f"port {port} on 127.0.0.1 is in use"):
        await start(host_maddrs=[f"/ip4/127.0.0.1/tcp/{port}"])
    await first.close()
    await start(host_maddrs=[f"/ip4/127.0.0.1/tcp/{port}"])  # free again at once


async def test_a_chosen_port_that_was_taken_meanwhile_is_replaced(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        chosen = [(f"/ip4/127.0.0.1/tcp/{port}",)]

        def listenable(host_maddrs: Sequence[str]) -> tuple[str, ...]:
            return chosen.pop() if chosen else addresses.listenable(host_maddrs)

        monkeypatch.setattr(p2pd, "listenable", listenable)
        transport = await start()
        assert not chosen
        assert f"/tcp/{port}" not in "".join(await transport.maddrs())


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"host_maddrs": ["/ip4/192.0.2.1/tcp/0"]}, ListenError, "192.0.2.1: it is not an address of this"),
        ({"host_maddrs": ["0.0.0.0:31330"]}, UsageError, "cannot listen on '0.0.0.0:31330'"),
        ({"host_maddrs": ["/ip4/1.2.3/tcp/1"]}, UsageError, "cannot listen on '/ip4/1.2.3/tcp/1'"),
        ({"host_maddrs": ["/ip4/127.0.0.1/tcp/70000"]}, UsageError, "70000"),
        ({"initial_peers": ["127.0.0.1:31330"]}, UsageError, "is not a multiaddress"),
        ({"initial_peers": ["/ip4/127.0.0.1/tcp/31330"]}, UsageError, "names no peer"),
        ({"initial_peers": [f"/ip4/999.0.0.1/tcp/1/p2p/{STRANGER}"]}, UsageError, "999.0.0.1"),
        (
            {"initial_peers": [f"/ip4/127.0.0.1/tcp/1/p2p/{STRANGER}"]},
            PeerUnreachableError,
            "nobody listens at",
        ),
        ({"announce_maddrs": ["/ip4/1.2.3.4/tcp/0"]}, UsageError, "nobody can dial port 0"),
        ({"announce_maddrs": ["/foo/bar"]}, UsageError, "is not a multiaddress"),
    ],
    ids=lambda value: str(next(iter(value.values()))[0])[:40] if isinstance(value, dict) else "",
)
async def test_wrong_addresses_are_explained_and_nothing_is_left(
    start: Start, options: dict[str, list[str]], kind: type[Exception], message: str
) -> None:
    began = time.monotonic()
    with pytest.raises(kind, match=message) as caught:
        await start(**options)
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)
    assert our_daemons() == []


async def test_an_initial_peer_with_another_id_or_protocol_or_none_is_explained(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p2pd, "BOOTSTRAP_TIMEOUT", 1.0)
    server = await start()
    where = (await server.maddrs())[0].rpartition("/p2p/")[0]
    with pytest.raises(
        PeerUnreachableError, match=f"is the address of peer {server.peer_id}, not of {STRANGER}"
    ):
        await start(initial_peers=[f"{where}/p2p/{STRANGER}"])

    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionResetError):
            await reader.read()
        writer.close()

    expected = (
        (web, NetworkError, "not a swarm peer|in time"),
        (mute, PeerTimeoutError, "did not answer within 1 s"),
    )
    for handler, kind, message in expected:
        listener = await asyncio.start_server(handler, "127.0.0.1", 0)
        async with listener:
            port = listener.sockets[0].getsockname()[1]
            with pytest.raises(kind, match=message):
                await start(initial_peers=[f"/ip4/127.0.0.1/tcp/{port}/p2p/{STRANGER}"])


async def test_an_initial_peer_may_be_given_by_name(start: Start) -> None:
    server = await start()
    port = server.listen_maddrs[0].rpartition("/")[2]
    client = await start(initial_peers=[f"/dns4/localhost/tcp/{port}/p2p/{server.peer_id}"], client_mode=True)
    await client.connect(server.peer_id)


async def test_one_initial_peer_that_answers_is_enough(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start()
    dead = f"/ip4/127.0.0.1/tcp/1/p2p/{STRANGER}"
    with caplog.at_level(logging.WARNING, logger="swarm_node"):
        client = await start(initial_peers=[dead, *await server.maddrs()], client_mode=True)
    assert "an initial peer does not answer" in caplog.text
    await client.connect(server.peer_id)


async def test_nobody_dials_himself(start: Start) -> None:
    identity = Identity.generate()
    transport = await start(identity)
    with pytest.raises(PeerUnreachableError, match="is this process itself"):
        await transport.open_stream(transport.peer_id, ECHO, await transport.maddrs())
    with pytest.raises(UsageError, match="has the identity of this process"):
        await start(identity, initial_peers=await transport.maddrs())


async def test_dials_that_fail_say_why(start: Start) -> None:
    server, client, _ = await linked(start)
    with pytest.raises(PeerUnreachableError, match="does not speak"):
        await client.open_stream(server.peer_id, "/other/1")
    with pytest.raises(PeerUnreachableError, match=r"no address of peer|cannot reach peer"):
        await client.open_stream(STRANGER, ECHO, timeout=5)
    with pytest.raises(PeerUnreachableError, match="is not a peer id"):
        await client.open_stream("0OIl", ECHO)
    where = await server.maddrs()
    newcomer = await start(client_mode=True)
    daemon = psutil.Process(daemon_pid(server))
    daemon.suspend()
    try:
        deadline = time.monotonic() + 5
        while daemon.status() != psutil.STATUS_STOPPED:  # each of its threads takes a moment
            assert time.monotonic() < deadline
            time.sleep(0.01)  # noqa: ASYNC251
        with pytest.raises(PeerTimeoutError, match="did not answer within"):
            await newcomer.open_stream(server.peer_id, ECHO, where, timeout=0.3)
    finally:
        daemon.resume()


async def test_a_peer_that_is_killed_ends_its_streams(start: Start) -> None:
    server, client, stream = await linked(start)
    os.kill(daemon_pid(server), signal.SIGKILL)
    assert await asyncio.wait_for(stream.read(), 5) == b""
    where = await asyncio.wait_for(_redial(client, server.peer_id), 5)
    assert isinstance(where, NetworkError)


@pytest.mark.parametrize("how", ["read", "drain"])
async def test_a_dying_daemon_s_reset_streams_are_not_the_peer_s_fault(start: Start, how: str) -> None:
    """Its sockets close one by one, those with unread bytes with a reset: here by hand, and the daemon that
    does not answer any more is a frozen one."""
    transport = await start()

    async def use(stream: Stream) -> None:
        if how == "read":
            await stream.read()
        while how == "drain":
            stream.write([b"x"])
            await stream.drain()

    async def ended() -> NetworkError:
        ours, daemons = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        stream = P2pdStream(transport.p2p.process, STRANGER, b"", reader, writer)
        stream.write([b"nobody reads this"])
        daemons.close()
        with pytest.raises(NetworkError) as caught:
            await use(stream)
        stream.close()
        return caught.value

    assert type(await ended()) is StreamClosedError
    await freeze(daemon_pid(transport))
    with pytest.raises(LocalNetworkError, match="has not answered for 1 s"):
        raise await ended()


async def _redial(client: P2pdTransport, peer_id: str) -> NetworkError:
    while True:
        try:
            (await client.open_stream(peer_id, ECHO, timeout=2)).close()
        except NetworkError as error:
            return error


class Watcher:
    """Waits for what a transport says of its network."""

    def __init__(self, transport: P2pdTransport) -> None:
        self.changes: asyncio.Queue[NetworkChange] = asyncio.Queue()
        transport.watch(self.changes.put)

    async def next(self) -> NetworkChange:
        return await asyncio.wait_for(self.changes.get(), 10)


async def test_a_daemon_that_dies_is_replaced_under_those_who_use_it(start: Start) -> None:
    server, client, stream = await linked(start)
    inbound: asyncio.Queue[Stream] = asyncio.Queue()

    async def accept(stream: Stream) -> None:
        inbound.put_nowait(stream)
        await asyncio.Event().wait()

    await client.serve("/inbound/1", accept)
    (await server.open_stream(client.peer_id, "/inbound/1")).write([b"x"])
    accepted = await inbound.get()
    assert await accepted.read() == b"x"
    where, first, watcher = await server.maddrs(), daemon_pid(client), Watcher(client)

    os.kill(first, signal.SIGKILL)
    for read in (stream.read, accepted.read):
        with pytest.raises(LocalNetworkError, match=r"p2pd.* has stopped"):
            await asyncio.wait_for(read(), 5)
    again = await client.open_stream(server.peer_id, ECHO, where)  # waits for the next daemon
    again.write([b"still me"])
    assert await again.read() == b"still me"
    assert daemon_pid(client) != first
    lost, restored = await watcher.next(), await watcher.next()
    assert isinstance(lost, NetworkLost)
    assert "has stopped (exit status -9)" in lost.message
    assert isinstance(restored, NetworkRestored)
    (await server.open_stream(client.peer_id, "/inbound/1")).write([b"y"])
    assert await (await inbound.get()).read() == b"y"


async def test_nobody_gets_the_port_of_a_daemon_that_is_down(start: Start) -> None:
    server = await start()
    (where,) = server.listen_maddrs
    watcher = Watcher(server)
    os.kill(daemon_pid(server), signal.SIGKILL)
    assert isinstance(await watcher.next(), NetworkLost)
    with pytest.raises(ListenError, match="is in use by another process"):
        addresses.listenable([where])
    assert isinstance(await watcher.next(), NetworkRestored)
    assert server.listen_maddrs == (where,)
    await server.close()
    assert addresses.listenable([where]) == (where,)


async def test_a_daemon_that_is_replaced_listens_where_it_did_and_meets_whom_it_knew(start: Start) -> None:
    server, other = await asyncio.gather(start(), start())
    where, watcher = await server.maddrs(), Watcher(server)
    await other.connect(server.peer_id, where)
    await other.serve(ECHO, echo)
    await server.check()  # looks whom it knows
    os.kill(daemon_pid(server), signal.SIGKILL)
    assert isinstance(await watcher.next(), NetworkLost)
    assert isinstance(await watcher.next(), NetworkRestored)
    assert await server.maddrs() == where
    back = await server.open_stream(other.peer_id, ECHO, timeout=5)  # nobody told it where
    back.write([b"there you are"])
    assert await back.read() == b"there you are"


async def test_a_daemon_that_hangs_is_replaced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "HUNG_AFTER_S", 0.5)
    server, client, stream = await linked(start)
    where, watcher = await server.maddrs(), Watcher(client)
    os.kill(daemon_pid(client), signal.SIGSTOP)
    with pytest.raises(LocalNetworkError, match=r"did not answer for 0\.5 s and was replaced"):
        await asyncio.wait_for(stream.read(), 5)
    assert isinstance(await watcher.next(), NetworkLost)
    assert isinstance(await watcher.next(), NetworkRestored)
    (await client.open_stream(server.peer_id, ECHO, where)).close()


async def test_a_hung_daemon_is_told_from_a_silent_peer(start: Start) -> None:
    server, client, _ = await linked(start)
    await freeze(daemon_pid(server))
    try:
        await client.check()
    finally:
        os.kill(daemon_pid(server), signal.SIGCONT)
    await freeze(daemon_pid(client))
    with pytest.raises(LocalNetworkError, match="did not answer for 1 s"):
        await client.check()


async def test_a_daemon_that_cannot_be_kept_is_given_up(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MOST_DEATHS", 2)
    server, client, _ = await linked(start)
    watcher, died = Watcher(client), asyncio.create_task(client.died())
    os.kill(daemon_pid(client), signal.SIGKILL)
    assert isinstance(await watcher.next(), NetworkLost)
    assert isinstance(await watcher.next(), NetworkRestored)
    os.kill(daemon_pid(client), signal.SIGKILL)
    error = await asyncio.wait_for(died, 5)
    assert "2 libp2p daemons (p2pd) of this process ended one after the other" in str(error)
    for use in (
        client.maddrs,
        client.check,
        lambda: client.open_stream(server.peer_id, ECHO),
        lambda: client.connect(server.peer_id),
        lambda: client.serve("/more/1", echo),
    ):
        with pytest.raises(LocalNetworkError):
            await asyncio.wait_for(use(), 5)
    assert not client.p2p.is_alive


async def test_close_ends_everything_and_may_be_repeated(start: Start) -> None:
    server, client, stream = await linked(start)
    stream.write([b"x"])
    assert await stream.read() == b"x"
    waiting = asyncio.create_task(stream.read())
    await asyncio.sleep(0)
    assert len(our_daemons()) == 2
    await client.close()
    await client.close()
    with pytest.raises(StreamClosedError, match="closed on this side"):
        await waiting
    with pytest.raises(StreamClosedError):
        stream.write([b"x"])
    for use in (client.maddrs, lambda: client.open_stream(server.peer_id, ECHO)):
        with pytest.raises(StreamClosedError, match="the transport is closed"):
            await use()
    await server.close()
    assert our_daemons() == []
    assert sockets() == []


async def test_the_daemon_has_a_session_of_its_own_and_private_sockets(start: Start) -> None:
    transport = await start()
    assert os.getsid(daemon_pid(transport)) != os.getsid(0)  # Ctrl-C in our terminal does not reach it
    (folder,) = sockets()
    assert folder.stat().st_mode & 0o077 == 0


async def test_a_key_is_on_no_disk_but_where_its_owner_keeps_it(start: Start) -> None:
    await start()
    (folder,) = sockets()
    assert set(os.listdir(folder)) <= {"client.sock", "p2pd.sock"}
    assert os.listdir(tempfile.gettempdir()) == [folder.name]


async def test_sockets_of_killed_processes_are_removed(start: Start) -> None:
    transport = await start()
    (live,) = sockets()
    stale = live.parent / "swarm-node-p2pd-stale"
    fresh = live.parent / "swarm-node-p2pd-fresh"
    for folder in (stale, fresh):
        folder.mkdir()
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(str(folder / "p2pd.sock"))
    long_ago = time.time() - STALE_AGE - 10
    for folder in (live, stale):
        os.utime(folder, (long_ago, long_ago))
    remove_stale_folders()
    assert set(sockets()) == {live, fresh}
    assert await transport.maddrs()
    (fresh / "p2pd.sock").unlink()
    fresh.rmdir()


def test_ids_inside_addresses_are_encoded_as_multihashes() -> None:
    """Bytes as py-multiaddr 0.2 makes them."""
    raw = "24080112205eb7249bd15b689e907019a68bccd13595fb1763b012c84734effdccba6753c2"
    assert encode_maddr("/ip4/1.2.3.4/tcp/80").hex() == "0401020304060050"
    relayed = encode_maddr(f"/ip4/1.2.3.4/tcp/80/p2p/{STRANGER}/p2p-circuit").hex()
    assert relayed == f"0401020304060050a5032600{raw}a202"
    with pytest.raises(UsageError):
        encode_maddr("/ip4/1.2.3.4/tcp/80/p2p/0OIl")


def no_descriptor(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_a_process_without_descriptors_does_not_take_its_daemon_for_gone(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "PING_EVERY_S", 0.01)
    server, client, stream = await linked(start)
    pid = daemon_pid(client)
    with monkeypatch.context() as patch:
        patch.setattr(process, "socket", SimpleNamespace(socket=no_descriptor, AF_UNIX=1, SOCK_STREAM=1))
        patch.setattr(asyncio, "open_unix_connection", no_descriptor)
        assert not client.p2p.process.is_gone()
        with pytest.raises(OpenFilesError, match="too many open files"):
            await client.open_stream(server.peer_id, ECHO)
        with pytest.raises(LocalNetworkError, match="too many open files"):
            await client.check()
        await until(lambda: caplog.text.count("event=open_files_short") == 2)  # each transport's
        await asyncio.sleep(0.1)
    assert caplog.text.count("event=open_files_short") == 2
    stream.write([b"still there"])
    assert await stream.read() == b"still there"
    assert (await client.open_stream(server.peer_id, ECHO)).peer_id == server.peer_id
    assert daemon_pid(client) == pid


async def test_streams_of_others_are_bounded_and_those_who_came_first_stay(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p2pd, "MAX_STREAMS", 2)
    server, client, first = await linked(start)
    streams = [first, await client.open_stream(server.peer_id, ECHO)]
    await until(lambda: len(server._accepted) == 2)
    with suppress(StreamClosedError):
        refused = await client.open_stream(server.peer_id, ECHO)
        assert await refused.read() == b""
    for stream in streams:
        stream.write([b"here"])
        assert await stream.read() == b"here"
    streams[1].close()
    await until(lambda: len(server._accepted) == 1)
    again = await client.open_stream(server.peer_id, ECHO)
    again.write([b"room"])
    assert await again.read() == b"room"
