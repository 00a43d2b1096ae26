"""The laboratory's forwarder for Python: C code in a thread that no Python can hold up.

Why C: at 1 Gbit/s a packet of 1500 bytes comes every 12 microseconds, and two cores carry the swarm too.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path

from swarm_node.swarm.runtime.c_build import NativeUnavailableError, load_library

from .kernel import LabUnavailableError

MAX_MACHINES = 64
"""As in the C source."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What became of the packets of one direction of a link. ``bytes`` are those delivered, IP headers
    included; ``lost`` by chance, ``overflowed`` a full queue, ``cut`` and ``refused`` as they say."""

    packets: int = 0
    bytes: int = 0
    lost: int = 0
    overflowed: int = 0
    cut: int = 0
    refused: int = 0

    def __sub__(self, other: Counters) -> Counters:
        return Counters(*(getattr(self, name) - getattr(other, name) for name in Counters.__slots__))


@dataclass(frozen=True, slots=True)
class Punctuality:
    """How much later than due packets were delivered since the last question, in seconds, and the processor
    time that forwarding has cost since the beginning. ``realtime``: the system let it run before others."""

    packets: int
    mean_late_s: float
    latest_s: float
    cpu_s: float
    realtime: bool


class _Counters(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in Counters.__slots__]


class _Timing(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("delivered", "late_ns", "latest_ns", "cpu_ns")),
        ("realtime", ctypes.c_int),
    ]


@cache
def _library() -> ctypes.CDLL:
    """Raises LabUnavailableError where it cannot be compiled."""
    try:
        library = load_library("wan_lab", [Path(__file__).with_name("forwarder.c")])
    except NativeUnavailableError as error:
        raise LabUnavailableError(f"the forwarder cannot be compiled: {error}") from error
    pointer, number, real, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_double, ctypes.c_int64
    library.wan_lab_new.argtypes, library.wan_lab_new.restype = [ctypes.c_uint64, number], pointer
    library.wan_lab_add.argtypes = [pointer, number, ctypes.c_uint32]
    library.wan_lab_set_machine.argtypes = [pointer, number, real, real, number]
    library.wan_lab_set_link.argtypes = [pointer, number, number, long, long, real, real, number]
    library.wan_lab_counters.argtypes = [pointer, number, number, ctypes.POINTER(_Counters)]
    library.wan_lab_timing.argtypes = [pointer, ctypes.POINTER(_Timing)]
    for name in ("run", "stop", "free"):
        getattr(library, f"wan_lab_{name}").argtypes = [pointer]
    return library


def check_forwarder() -> None:
    """Raises LabUnavailableError."""
    _library()


class Forwarder:
    """Forwards between the devices given to ``add``, from the start until ``close``. ``multicast``: what is
    sent to a group goes to all of them."""

    def __init__(self, seed: int, *, multicast: bool = False) -> None:
        self._library = _library()
        self._lab = self._library.wan_lab_new(seed, multicast)
        if not self._lab:
            raise LabUnavailableError("no memory or no file descriptors for the forwarder")
        self._thread = threading.Thread(target=self._library.wan_lab_run, args=(self._lab,), daemon=True)
        self._thread.start()

    def add(self, device: int, address: IPv4Address) -> int:
        """A machine's number. ``device`` is its TUN device's file descriptor, which stays the caller's."""
        number = int(
            self._library.wan_lab_add(self._lab, device, int.from_bytes(address.packed, sys.byteorder))
        )
        if number < 0:
            raise ValueError(f"a laboratory has at most {MAX_MACHINES} machines")
        return number

    def set_machine(self, number: int, *, up: float, down: float, takes_strangers: bool) -> None:
        """Rates of its access in bit/s, 0 without limit."""
        if self._library.wan_lab_set_machine(self._lab, number, up, down, takes_strangers):
            raise MemoryError

    def set_link(
        self, a: int, b: int, *, latency_s: float, jitter_s: float, rate: float, loss: float, is_cut: bool
    ) -> None:
        """The direction from machine ``a`` to ``b``."""
        nanoseconds = round(latency_s * 1e9), round(jitter_s * 1e9)
        self._library.wan_lab_set_link(self._lab, a, b, *nanoseconds, rate, loss, is_cut)

    def counters(self, a: int, b: int) -> Counters:
        found = _Counters()
        self._library.wan_lab_counters(self._lab, a, b, ctypes.byref(found))
        return Counters(*(getattr(found, name) for name in Counters.__slots__))

    def punctuality(self) -> Punctuality:
        found = _Timing()
        self._library.wan_lab_timing(self._lab, ctypes.byref(found))
        packets = found.delivered
        mean = found.late_ns / packets / 1e9 if packets else 0.0
        return Punctuality(packets, mean, found.latest_ns / 1e9, found.cpu_ns / 1e9, bool(found.realtime))

    def close(self) -> None:
        """Idempotent."""
        if self._lab:
            self._library.wan_lab_stop(self._lab)
            self._thread.join()
            self._library.wan_lab_free(self._lab)
            self._lab = None
