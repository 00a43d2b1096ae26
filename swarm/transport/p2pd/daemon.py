"""hivemind's ``P2P`` over a daemon that can be replaced: its users need not know that one died."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon import p2pclient
from hivemind.p2p.p2p_daemon_bindings.control import DEFAULT_MAX_MSG_SIZE, ControlClient
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from ...errors import LocalNetworkError, NetworkError, StreamClosedError
from ..addresses import held_ports
from .options import P2pdOptions
from .process import STARTUP_TIMEOUT, STOP_TIMEOUT, P2pdProcess, remove_stale_folders
from .relay_figures import RelayFigures


class P2pDaemon(P2P):
    """Usable wherever hivemind wants a ``P2P``, across ``restart``: identity, addresses and handlers stay.

    Between the end of a daemon and the next one, calls wait; the caller's own time limit ends that.
    """

    def __init__(self, options: P2pdOptions) -> None:
        super().__init__()
        self._client: p2pclient.Client | None
        self._listen_task: asyncio.Task[None] | None
        self.options = options
        self.relay_figures = RelayFigures() if options.is_relay else None
        self._process: P2pdProcess | None = None
        self._up = asyncio.Event()  # there is a daemon to ask, or there will be none any more
        self._failure: LocalNetworkError | None = None
        self._stopping = False
        self._held = held_ports(options.host_maddrs)
        self._listeners: set[asyncio.Task[None]] = set()  # of the sockets that streams come in by

    @classmethod
    async def launch(cls, options: P2pdOptions) -> P2pDaemon:
        """Start p2pd and wait until it listens. Raises ListenError or NetworkError."""
        remove_stale_folders()
        self = cls(options)
        try:
            await self.restart()
        except BaseException:
            await self.shutdown()
            raise
        return self

    @property
    def process(self) -> P2pdProcess:
        """The daemon in use, or the last that was. Raises NetworkError before the first."""
        if self._process is None:
            raise NetworkError("the libp2p daemon (p2pd) was not started")
        return self._process

    async def restart(self) -> None:
        """Start a daemon in the place of the last one, which is ended if it still runs.

        Raises ListenError or NetworkError. The caller may then try again.
        """
        last, handlers = self._process, self._client.control if self._client is not None else None
        self._lay_down()
        if last is not None:
            last.kill("was replaced")
            await last.stop()
        options = self.options
        if options.relays:
            options = options.announcing((*await self._direct_addresses(), *options.circuits()))
        if self.relay_figures is not None:
            options = replace(options, figures_port=self.relay_figures.next_port())
        process = await P2pdProcess.start(options, self._on_end)
        if self._stopping:
            await process.stop()
            raise StreamClosedError("the transport is closed")
        self._process, self._child = process, process.child
        self._daemon_listen_maddr = Multiaddr(f"/unix{process.control_socket}")
        self._client_listen_maddr = Multiaddr(f"/unix{process.client_socket}")
        try:
            async with asyncio.timeout(STARTUP_TIMEOUT):
                client = await p2pclient.Client.create(
                    control_maddr=self._daemon_listen_maddr,
                    listen_maddr=self._client_listen_maddr,
                    persistent_conn_max_msg_size=DEFAULT_MAX_MSG_SIZE,
                )
                for task in (client.control._read_task, client.control._write_task):
                    task.add_done_callback(_forget)  # they fail when the daemon dies, which is seen elsewhere
                self._client, before = client, self._client
                try:
                    await self._ping_daemon()
                    if handlers is not None:
                        await self._take_over(client, handlers)
                except BaseException:
                    if before is not None:
                        client.close()
                        self._client = before  # which knows the handlers
                    raise
        except TimeoutError:
            raise NetworkError(
                f"the libp2p daemon (p2pd) did not start within {STARTUP_TIMEOUT:g} s"
            ) from None
        except (OSError, EOFError, P2PDaemonError) as error:
            raise NetworkError(f"the libp2p daemon (p2pd) failed while it started: {error}") from error
        if not process.ended.is_set():
            self._up.set()

    async def _direct_addresses(self) -> tuple[str, ...]:
        """Where peers of our own network can dial us, which only a daemon that listens knows. A daemon with
        relays announces them, so they must be known before it starts."""
        options = self.options
        if options.announce_maddrs or options.client_mode:
            return options.announce_maddrs
        process = await P2pdProcess.start(options.without_relays(), lambda: None)
        try:
            async with asyncio.timeout(STARTUP_TIMEOUT):
                response, _, writer = await process.request(p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY))
            writer.close()
        finally:
            await process.stop()
        return tuple(str(Multiaddr(raw)) for raw in response.identify.addrs)

    async def ready(self) -> None:
        """Wait until there is a daemon. Raises LocalNetworkError once there will be none any more."""
        await self._up.wait()
        if self._stopping:
            raise StreamClosedError("the transport is closed")
        if self._failure is not None:
            raise self._failure

    @property
    def is_up(self) -> bool:
        return self._up.is_set() and self._failure is None

    async def request(
        self, request: p2pd_pb2.Request
    ) -> tuple[p2pd_pb2.Response, asyncio.StreamReader, asyncio.StreamWriter]:
        """As the process's. A caller that repeats it after a LocalNetworkError awaits ``ready`` first."""
        process = self.process
        try:
            return await process.request(request)
        except LocalNetworkError:
            if process is self._process:
                self._up.clear()
            raise

    async def ended(self) -> LocalNetworkError:
        """Waits for the end of the daemon in use; what to tell people about it."""
        process = self.process
        await process.ended.wait()
        return process.death_error()

    def kill(self, because: str) -> None:
        self.process.kill(because)

    def give_up(self, error: LocalNetworkError) -> None:
        """There will be no other daemon: all callers that wait for one get ``error``."""
        self._failure = error
        self._up.set()

    async def shutdown(self) -> None:
        """Stop the daemon and remove its sockets. Idempotent."""
        self._stopping = True
        self._up.set()
        self._terminate()
        if self._process is not None:
            await self._process.stop()
        for port in self._held:
            port.close()
        if self._listeners:
            await asyncio.wait(self._listeners, timeout=STOP_TIMEOUT)

    # hivemind's side.

    async def _call_unary_protobuf_handler(
        self, peer_id: PeerID, handle_name: str, input: Any, output_protobuf_type: Any
    ) -> Any:
        """As hivemind's, but a call that a daemon took with it is made again: the DHT's may be repeated, and
        one that fails for our own fault would cost a peer its place in the routing table."""
        while True:
            await self.ready()
            process = self.process
            try:
                return await super()._call_unary_protobuf_handler(
                    peer_id, handle_name, input, output_protobuf_type
                )
            except P2PDaemonError:
                if self._stopping or (process is self._process and not process.is_gone()):
                    raise

    def _start_listening(self) -> None:
        super()._start_listening()
        if self._listen_task is not None:
            self._listeners.add(self._listen_task)
            self._listen_task.add_done_callback(self._listeners.discard)

    def _terminate(self) -> None:
        self._lay_down()
        if self._process is not None:
            self._process.terminate()

    def _lay_down(self) -> None:
        """End what belongs to the daemon in use."""
        if not self._stopping:
            self._up.clear()
        if self._client is not None:
            self._client.close()
        if self._listen_task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, in __del__
                self._listen_task.cancel()
            self._listen_task = None

    async def _take_over(self, client: p2pclient.Client, last: ControlClient) -> None:
        """Let the new daemon give us what the last one did."""
        for protocol, handler in last.handlers.items():
            await self.add_binary_stream_handler(protocol, handler)
        for protocol, handler in last.unary_handlers.items():
            await client.add_unary_handler(protocol, handler)

    def _on_end(self) -> None:
        """End hivemind's unary calls, which would otherwise wait for the dead daemon for ever."""
        if self._process is None or not self._process.ended.is_set() or self._stopping:
            return
        self._up.clear()
        if self._client is not None:
            for call in self._client.control._pending_calls.values():
                if not call.done():
                    call.set_exception(P2PDaemonError(self._process.death_error().message))


def _forget(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()
