"""Our go-libp2p daemon: starting it, noticing its end, stopping it without leaving anything behind.

hivemind's ``P2P.create`` is not used because its daemon shares our terminal's process group (Ctrl-C would
kill it before we can say good-bye), its sockets lie open in /tmp, and a daemon that dies goes unnoticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import hivemind.hivemind_cli
from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon import p2pclient
from hivemind.p2p.p2p_daemon_bindings.control import DEFAULT_MAX_MSG_SIZE
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError, read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from .errors import ListenError, NetworkError, StreamClosedError

logger = logging.getLogger(__name__)

STARTUP_TIMEOUT = 15.0
STOP_TIMEOUT = 3.0
"""Seconds between SIGTERM and SIGKILL."""
STALE_AGE = 60.0
"""Seconds before a folder of sockets that nobody answers on counts as left behind, not as just being made."""
STREAM_LIMIT = 256 * 1024
"""Bytes that asyncio buffers of a stream before it stops reading; twice this at most."""

_FOLDER_PREFIX = "swarm-node-p2pd-"
_DAEMON_SOCKET = "p2pd.sock"
_CLIENT_SOCKET = "client.sock"
_MAX_SOCKET_PATH = 100  # macOS allows 104 bytes, Linux 108


class P2pDaemon(P2P):
    """A hivemind ``P2P``, usable wherever hivemind wants one, over a daemon that we start and watch."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = _make_folder()
        self._daemon_listen_maddr = Multiaddr(f"/unix{self._folder / _DAEMON_SOCKET}")
        self._client_listen_maddr = Multiaddr(f"/unix{self._folder / _CLIENT_SOCKET}")
        self._follower: asyncio.Task[None] | None = None
        self._last_lines: deque[str] = deque(maxlen=5)
        self._ended = asyncio.Event()
        self._stopping = False

    @classmethod
    async def launch(
        cls,
        *,
        identity_path: str | None,
        host_maddrs: Sequence[str],
        announce_maddrs: Sequence[str] = (),
        client_mode: bool = False,
        nat_port_map: bool = False,
    ) -> P2pDaemon:
        """Start p2pd and wait until it listens. Raises ListenError or NetworkError."""
        remove_stale_folders()
        self = cls()
        options: dict[str, Any] = {
            "listen": self._daemon_listen_maddr,
            "autoRelay": False,
            "autonat": True,
            "b": False,  # we connect to the initial peers ourselves, with errors that say which and why
            "connManager": True,
            "idleTimeout": "30s",
            "natPortMap": nat_port_map,
            "relay": True,
            "tls": True,
            "persistentConnMaxMsgSize": DEFAULT_MAX_MSG_SIZE,
            "dhtClient" if client_mode else "dhtServer": True,
        }
        if client_mode:
            options["noListenAddrs"] = True
        elif host_maddrs:
            options["hostAddrs"] = ",".join(host_maddrs)
        if announce_maddrs:
            options["announceAddrs"] = ",".join(announce_maddrs)
        if identity_path is not None:
            options["id"] = identity_path
        try:
            await self._start(self._make_process_args(_binary(), **options))
        except BaseException:
            await self.shutdown()
            raise
        return self

    async def _start(self, arguments: list[str]) -> None:
        environment = {"GOLOG_LOG_LEVEL": "error", **os.environ}
        try:
            self._child = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C in the terminal is ours to handle
            )
        except OSError as error:
            raise NetworkError(
                f"cannot run the libp2p daemon {arguments[0]}: {error.strerror or error}",
                hint="Reinstall hivemind for this platform.",
            ) from error
        self._alive = True
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._follower = asyncio.create_task(self._follow(self._child, ready))
        try:
            async with asyncio.timeout(STARTUP_TIMEOUT):
                await ready
                self._client = await p2pclient.Client.create(
                    control_maddr=self._daemon_listen_maddr,
                    listen_maddr=self._client_listen_maddr,
                    persistent_conn_max_msg_size=DEFAULT_MAX_MSG_SIZE,
                )
                await self._ping_daemon()
        except TimeoutError:
            raise NetworkError(
                f"the libp2p daemon (p2pd) did not start within {STARTUP_TIMEOUT:g} s"
            ) from None
        except (OSError, EOFError, P2PDaemonError) as error:
            raise NetworkError(f"the libp2p daemon (p2pd) failed while it started: {error}") from error

    async def _follow(self, child: asyncio.subprocess.Process, ready: asyncio.Future[None]) -> None:
        """Read what the daemon prints until it ends."""
        while child.stdout is not None:
            try:
                line = await child.stdout.readline()
            except ValueError:  # a line longer than the buffer: asyncio has dropped it
                continue
            if not line:
                break
            text = line.rstrip().decode(errors="replace")
            self._last_lines.append(text)
            logger.debug("p2pd: %s", text)
            if text.startswith("Peer ID:") and not ready.done():
                ready.set_result(None)
        await child.wait()
        self._alive = False
        self._ended.set()
        if not ready.done():
            ready.set_exception(self._startup_error())
            ready.exception()  # seen, even if the launcher was cancelled meanwhile
        if self._client is not None and not self._stopping:
            self._fail_calls()

    def _fail_calls(self) -> None:
        """End hivemind's unary calls, which would otherwise wait for the dead daemon for ever."""
        for call in self._client.control._pending_calls.values():
            if not call.done():
                call.set_exception(P2PDaemonError(self.death_error().message))

    async def request(
        self, request: p2pd_pb2.Request
    ) -> tuple[p2pd_pb2.Response, asyncio.StreamReader, asyncio.StreamWriter]:
        """Send one control request; the connection is the caller's to close.

        Raises StreamClosedError if the daemon is gone.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(
                self._folder / _DAEMON_SOCKET, limit=STREAM_LIMIT
            )
        except OSError as error:
            raise self.broken(error) from error
        try:
            response = p2pd_pb2.Response()
            await write_pbmsg(writer, request)
            await read_pbmsg_safe(reader, response)
        except (OSError, EOFError) as error:
            writer.close()
            raise self.broken(error) from error
        except BaseException:
            writer.close()
            raise
        return response, reader, writer

    def is_gone(self) -> bool:
        """Whether the daemon has ended, even if its exit status has not reached us yet."""
        return self._ended.is_set() or not _answers(self._folder / _DAEMON_SOCKET)

    async def wait_ended(self) -> None:
        await self._ended.wait()

    def death_error(self) -> StreamClosedError:
        """What to tell people after the daemon ended by itself."""
        status = f" (exit status {self._child.returncode})" if self._child and self._ended.is_set() else ""
        return StreamClosedError(
            f"the libp2p daemon (p2pd) of this process has stopped{status}", hint="Start this process again."
        )

    async def shutdown(self) -> None:
        """Stop the daemon and remove its sockets. May be called again."""
        self._stopping = True
        self._terminate()
        if self._child is not None:
            try:
                async with asyncio.timeout(STOP_TIMEOUT):
                    await self._child.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._child.kill()
                await self._child.wait()
        if self._listen_task is not None:
            await asyncio.wait([self._listen_task])
        if self._follower is not None:
            await asyncio.wait([self._follower], timeout=STOP_TIMEOUT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def broken(self, error: BaseException) -> NetworkError:
        """The error to raise when the daemon did not do what we asked."""
        if self._stopping:
            return StreamClosedError("the transport is closed")
        if self.is_gone():
            return self.death_error()
        return NetworkError(f"the libp2p daemon (p2pd) broke off a request: {error or type(error).__name__}")

    def _startup_error(self) -> NetworkError:
        said = self._last_lines[-1] if self._last_lines else f"exit status {self._child.returncode}"
        said = said.split(" ", 2)[-1] if said[:4].isdigit() else said  # Go's log begins with date and time
        if "failed to listen" in said:
            return ListenError(f"cannot listen: {said[:300]}", hint="Check the address and the port.")
        return NetworkError(f"the libp2p daemon (p2pd) failed to start: {said[:300]}")


def remove_stale_folders() -> None:
    """Remove the socket folders of processes that were killed: old, ours, and nobody answers there."""
    for folder in _base_folder().glob(_FOLDER_PREFIX + "*"):
        with contextlib.suppress(OSError):  # somebody else's, or removed by another process meanwhile
            stat = folder.lstat()
            old = time.time() - stat.st_mtime > STALE_AGE
            if old and stat.st_uid == os.getuid() and not _answers(folder / _DAEMON_SOCKET):
                shutil.rmtree(folder, ignore_errors=True)


def _make_folder() -> Path:
    """A folder that only this user can enter, since whoever reaches the sockets acts under our identity."""
    return Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=_base_folder()))


def _base_folder() -> Path:
    folder = tempfile.gettempdir()
    longest = len(os.path.join(folder, _FOLDER_PREFIX + "12345678", _CLIENT_SOCKET).encode())
    return Path(folder if longest <= _MAX_SOCKET_PATH else "/tmp")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.setblocking(False)
        try:
            trial.connect(str(path))
        except BlockingIOError:
            return True  # its queue is full, so somebody owns it
        except OSError:
            return False
        return True


def _binary() -> str:
    return str(files(hivemind.hivemind_cli) / "p2pd")
