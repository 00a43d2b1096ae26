"""Network namespaces and TUN devices by system calls: no ``ip`` command, nothing with a name on the system.

A namespace made here is held by a file descriptor only, and a device by another: both are gone when the
process that made them is, however it ended. Linux only; needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001
SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFMTU, SIOCSIFTXQLEN = 0x8916, 0x891C, 0x8922, 0x8943
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
OWN_NAMESPACE = "/proc/thread-self/ns/net"

T = TypeVar("T")


class LabUnavailableError(Exception):
    """This machine cannot make virtual networks; the message says why, in a line."""


def new_namespace() -> int:
    """A file descriptor of a fresh network namespace whose loopback is up. Raises OSError."""

    def make() -> int:
        _check(_libc().unshare(CLONE_NEWNET))
        descriptor = os.open(OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            _bring_up(control, "lo")
        # Nobody routes IPv6 here; without it, peers do not announce it to each other either.
        with contextlib.suppress(OSError):
            Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
        return descriptor

    return _in_a_thread(make)


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Put this thread into a namespace: its sockets, its child processes and new threads are made there.

    They stay there; the thread itself goes back. In an event loop's thread the other tasks come along.
    """
    before = os.open(OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc().setns(namespace, CLONE_NEWNET))
        try:
            yield
        finally:
            _check(_libc().setns(before, CLONE_NEWNET))
    finally:
        os.close(before)


def tun_device(namespace: int, name: str, address: IPv4Address, netmask: IPv4Address, mtu: int) -> int:
    """A file descriptor of a TUN device (bare IP packets, non-blocking), made in a namespace and up."""

    def make() -> int:
        with inside(namespace):
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                _ioctl(device, TUNSETIFF, name, struct.pack("=H", IFF_TUN_NO_PI))
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                    _ioctl(control.fileno(), SIOCSIFMTU, name, struct.pack("=i", mtu))
                    # Long enough for what arrives while the forwarder waits for a processor.
                    _ioctl(control.fileno(), SIOCSIFTXQLEN, name, struct.pack("=i", 5000))
                    _ioctl(control.fileno(), SIOCSIFADDR, name, _sockaddr(address))
                    _ioctl(control.fileno(), SIOCSIFNETMASK, name, _sockaddr(netmask))
                    _bring_up(control, name)
            except BaseException:
                os.close(device)
                raise
        return device

    return _in_a_thread(make)


def processes_in(namespaces: set[int]) -> list[int]:
    """Process ids that run in one of these namespaces (inodes, as ``namespace_inode`` gives them)."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):  # gone meanwhile
                if os.stat(f"/proc/{entry}/ns/net").st_ino in namespaces:
                    found.append(int(entry))
    return found


def namespace_inode(namespace: int) -> int:
    return os.fstat(namespace).st_ino


def check_kernel() -> None:
    """Make a namespace with a device and drop both. Raises LabUnavailableError."""
    if not sys.platform.startswith("linux"):
        raise LabUnavailableError(f"network namespaces exist on Linux only, this is {sys.platform}")
    if os.geteuid() != 0:
        raise LabUnavailableError("making network namespaces needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN)")
    try:
        namespace = new_namespace()
    except OSError as error:
        raise LabUnavailableError(f"no network namespace can be made here: {error}") from error
    try:
        os.close(
            tun_device(namespace, "wan0", IPv4Address("10.77.0.1"), IPv4Address("255.255.0.0"), mtu=1500)
        )
    except OSError as error:
        raise LabUnavailableError(f"no TUN device can be made here (/dev/net/tun): {error}") from error
    finally:
        os.close(namespace)


def _in_a_thread(function: Callable[[], T]) -> T:
    """Call in a thread of its own, so that the caller's namespace is never touched."""
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _sockaddr(address: IPv4Address) -> bytes:
    return struct.pack("=HH4s8x", socket.AF_INET, 0, address.packed)


def _ioctl(descriptor: int, request: int, interface: str, value: bytes) -> bytes:
    """An interface request: struct ifreq is the name in 16 bytes and a value in 24."""
    import fcntl

    return fcntl.ioctl(descriptor, request, struct.pack("16s24s", interface.encode(), value))[16:]


def _bring_up(control: socket.socket, interface: str) -> None:
    flags = struct.unpack_from("=H", _ioctl(control.fileno(), SIOCGIFFLAGS, interface, b""))[0]
    _ioctl(control.fileno(), SIOCSIFFLAGS, interface, struct.pack("=H", flags | IFF_UP))
