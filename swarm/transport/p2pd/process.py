"""One run of our go-libp2p daemon: starting it, noticing its end, stopping it and leaving nothing behind.

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
from collections.abc import Callable
from pathlib import Path

from hivemind.p2p.p2p_daemon_bindings.utils import read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2

from ...errors import ListenError, LocalNetworkError, NetworkError, OpenFilesError
from ...runtime.open_files import none_left
from .options import P2pdOptions

logger = logging.getLogger(__name__)

STARTUP_TIMEOUT = 15.0
STOP_TIMEOUT = 3.0
"""Seconds between SIGTERM and SIGKILL."""
PROBE_S = 1.0
"""Seconds to wait for a daemon's answer. A working one takes a fraction of a millisecond, on a busy machine
longer."""
STALE_AGE = 60.0
"""A folder of sockets without an answer counts as left behind after this many seconds. Before that it may be
one that is being made."""
STREAM_LIMIT = 256 * 1024
"""Bytes that asyncio buffers of a stream before it stops reading; twice this at most."""

_FOLDER_PREFIX = "swarm-node-p2pd-"
_DAEMON_SOCKET = "p2pd.sock"
_CLIENT_SOCKET = "client.sock"
_MAX_SOCKET_PATH = 100  # macOS allows 104 bytes, Linux 108


class P2pdProcess:
    """A daemon that listens. Made by ``start``; ``stop`` must be called, however it ended.

    ``ended`` is set once it is gone, and ``on_end`` was called.
    """

    def __init__(self, child: asyncio.subprocess.Process, folder: Path, on_end: Callable[[], None]) -> None:
        self.child = child
        self.control_socket = folder / _DAEMON_SOCKET
        self.client_socket = folder / _CLIENT_SOCKET
        self.ended = asyncio.Event()
        self._folder = folder
        self._on_end = on_end
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last_lines: deque[str] = deque(maxlen=5)
        self._killed_because = ""
        self._follower = asyncio.create_task(self._follow(), name="p2pd output")

    @classmethod
    async def start(cls, options: P2pdOptions, on_end: Callable[[], None]) -> P2pdProcess:
        """Raises ListenError if it cannot listen, NetworkError if it does not start."""
        folder = _make_folder()
        try:
            key = _pipe_with(options.identity.key_file())
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise OpenFilesError from error
        arguments = options.arguments(folder / _DAEMON_SOCKET, _path_of(key))
        try:
            child = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=options.environment(),
                start_new_session=True,  # Ctrl-C in the terminal is ours to handle
                pass_fds=(key,),
            )
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if not isinstance(error, OSError):
                raise
            if none_left(error):
                raise OpenFilesError from error
            raise NetworkError(
                f"cannot run the libp2p daemon {arguments[0]}: {error.strerror or error}",
                hint="Reinstall hivemind for this platform.",
            ) from error
        finally:
            os.close(key)
        self = cls(child, folder, on_end)
        try:
            async with asyncio.timeout(STARTUP_TIMEOUT):
                await self._ready
        except TimeoutError:
            await self.stop()
            raise NetworkError(
                f"the libp2p daemon (p2pd) did not start within {STARTUP_TIMEOUT:g} s"
            ) from None
        except BaseException:
            await self.stop()
            raise
        return self

    async def _follow(self) -> None:
        """Read what the daemon prints until it ends."""
        while self.child.stdout is not None:
            try:
                line = await self.child.stdout.readline()
            except ValueError:  # a line longer than the buffer: asyncio has dropped it
                continue
            if not line:
                break
            text = line.rstrip().decode(errors="replace")
            self._last_lines.append(text)
            logger.debug("p2pd: %s", text)
            if text.startswith("Peer ID:") and not self._ready.done():
                self._ready.set_result(None)
        await self.child.wait()
        self.ended.set()
        if not self._ready.done():
            self._ready.set_exception(self._startup_error())
            self._ready.exception()  # seen, even if the launcher was cancelled meanwhile
        self._on_end()

    async def request(
        self, request: p2pd_pb2.Request
    ) -> tuple[p2pd_pb2.Response, asyncio.StreamReader, asyncio.StreamWriter]:
        """Send one control request; the connection is the caller's to close.

        Raises LocalNetworkError if the daemon is gone, OpenFilesError if it cannot be asked now, NetworkError
        if it breaks off.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(self.control_socket, limit=STREAM_LIMIT)
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
        return bool(self._killed_because) or self.ended.is_set() or not _answers(self.control_socket)

    async def fault(self) -> LocalNetworkError | None:
        """Asked when a stream ended: what to tell people if it can be for our daemon's sake, None if the peer
        ended it. A dying daemon's sockets close one by one, so that this may be the first sign of its end."""
        if self.is_gone():
            return self.death_error()
        try:
            async with asyncio.timeout(PROBE_S):
                _, _, writer = await self.request(p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY))
        except OpenFilesError as error:
            return LocalNetworkError(error.message, hint=error.hint)
        except NetworkError:
            return self.death_error()
        except TimeoutError:
            # Dying, hung or starved: the keeper finds out which. The peer is not to be blamed.
            return LocalNetworkError(
                f"the libp2p daemon (p2pd) of this process has not answered for {PROBE_S:g} s"
            )
        writer.close()
        return None

    def broken(self, error: BaseException) -> NetworkError:
        """The error to raise when the daemon did not do what we asked."""
        if none_left(error):
            return OpenFilesError()
        if self.is_gone():
            return self.death_error()
        return NetworkError(f"the libp2p daemon (p2pd) broke off a request: {error or type(error).__name__}")

    def death_error(self) -> LocalNetworkError:
        """What to tell people after the daemon ended without our asking."""
        status = f" (exit status {self.child.returncode})" if self.ended.is_set() else ""
        what = self._killed_because or f"has stopped{status}"
        return LocalNetworkError(f"the libp2p daemon (p2pd) of this process {what}")

    def kill(self, because: str) -> None:
        """End it without notice. ``because`` completes a sentence for people that begins with the daemon."""
        self._killed_because = self._killed_because or because
        with contextlib.suppress(ProcessLookupError):
            self.child.kill()

    def terminate(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.child.terminate()

    async def stop(self) -> None:
        """End it and remove its sockets. Idempotent."""
        self.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await self.child.wait()
        except TimeoutError:
            self.kill("did not stop")
            await self.child.wait()
        await asyncio.wait([self._follower], timeout=STOP_TIMEOUT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _startup_error(self) -> NetworkError:
        said = self._last_lines[-1] if self._last_lines else f"exit status {self.child.returncode}"
        said = said.split(" ", 2)[-1] if said[:4].isdigit() else said  # Go's log begins with date and time
        if "failed to listen" in said:
            return ListenError(f"cannot listen: {said[:300]}", hint="Check the address and the port.")
        return NetworkError(f"the libp2p daemon (p2pd) failed to start: {said[:300]}")


def _pipe_with(data: bytes) -> int:
    """The read end of a pipe that holds ``data``. p2pd reads its key from it, so that no key file is left on
    a disk."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(data)  # far less than what a pipe holds
    return reading


def _path_of(descriptor: int) -> str:
    """The path under which a child that inherits the descriptor finds it."""
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    return f"{folder}/{descriptor}"


def remove_stale_folders() -> None:
    """Remove the socket folders of processes that were killed: old, ours, and without an answer."""
    for folder in _base_folder().glob(_FOLDER_PREFIX + "*"):
        with contextlib.suppress(OSError):  # another user's, or removed by another process meanwhile
            stat = folder.lstat()
            old = time.time() - stat.st_mtime > STALE_AGE
            if old and stat.st_uid == os.getuid() and not _answers(folder / _DAEMON_SOCKET):
                shutil.rmtree(folder, ignore_errors=True)


def _make_folder() -> Path:
    """A folder that only this user can enter, since a process that reaches the sockets acts under our
    identity."""
    return Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=_base_folder()))


def _base_folder() -> Path:
    folder = tempfile.gettempdir()
    longest = len(os.path.join(folder, _FOLDER_PREFIX + "12345678", _CLIENT_SOCKET).encode())
    return Path(folder if longest <= _MAX_SOCKET_PATH else "/tmp")


def _answers(path: Path) -> bool:
    """Whether a process owns the socket, or that cannot be found out now."""
    try:
        trial = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:  # no descriptor is left
        return True
    with trial:
        trial.setblocking(False)
        try:
            trial.connect(str(path))
        except BlockingIOError:
            return True  # its queue is full, so a process owns it
        except OSError:
            return False
        return True
