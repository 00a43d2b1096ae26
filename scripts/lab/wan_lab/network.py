"""Machines in network namespaces of their own, joined by links that are as slow and bad as asked.

    with WanLab(rtt_s=0.1, rate=100e6) as lab:  # or async with
        lab.add("client")
        address = lab.add("node")
        lab.popen("node", ["swarm-node", "serve", "--host", address, ...])
        with lab.inside("client"):  # what is started here runs there
            ...
        lab.partition("client")
        lab.heal()

Every machine has one address and reaches every other over a link of their own, and may have an access that
all its links share. Nothing has a name on the system: when the process ends, however it does, devices and
namespaces are gone, and a guard process ends what still runs in them. It needs Linux, root and a C compiler:
``why_not_here`` says what is missing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import IPv4Network
from typing import Any, Self

from ..processes.child import child_environment
from . import kernel
from .forwarder import Counters, Forwarder, Punctuality, check_forwarder

DEVICE = "wan0"
STOP_SECONDS = 10.0
"""How long processes started by ``popen`` may take to leave after SIGTERM."""


@cache
def why_not_here() -> str:
    """Why this machine cannot run a laboratory, in a line; empty if it can."""
    try:
        kernel.check_kernel()
        check_forwarder()
    except kernel.LabUnavailableError as error:
        return str(error)
    return ""


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two machines. Seconds, bit/s (None: without limit), and a chance from 0 to 1.

    The latency of each packet is drawn evenly from ``latency_s`` ± ``jitter_s``; none overtakes another.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    rate: float | None = None
    loss: float = 0.0
    is_cut: bool = False

    def __post_init__(self) -> None:
        for name in ("latency_s", "jitter_s"):
            if not 0 <= getattr(self, name) <= 3600:
                raise ValueError(f"{name} is {getattr(self, name)!r}, not 0 to 3600 seconds")
        _check_rate(self.rate)
        if not 0 <= self.loss <= 1:
            raise ValueError(f"loss is {self.loss!r}, not 0 to 1")


@dataclass(frozen=True, slots=True)
class Machine:
    """``up`` and ``down``: what all links of the machine share, bit/s. Without ``takes_strangers`` a packet
    comes in only where one has gone out (same addresses, ports and protocol), as behind a NAT or firewall."""

    name: str
    address: str
    namespace: int
    device: int
    number: int
    up: float | None = None
    down: float | None = None
    takes_strangers: bool = True


class WanLab:
    """A laboratory; see the module. Its methods never wait, but for ``close``."""

    def __init__(
        self,
        *,
        rtt_s: float = 0.0,
        jitter_s: float = 0.0,
        rate: float | None = None,
        loss: float = 0.0,
        access: float | None = None,
        network: str = "10.77.0.0/16",
        mtu: int = 1500,
        multicast: bool = False,
        seed: int = 1,
    ) -> None:
        """Links have half of ``rtt_s`` as latency each way, ``jitter_s``, ``rate`` and ``loss``, machines an
        ``access`` in bit/s, the same up and down, until something else is said. ``network``: where
        addresses come from; a public one is seen by nobody outside. ``multicast``: it reaches every
        machine, as on one switch. ``seed``: of losses and jitter.

        Raises LabUnavailableError where it cannot be made.
        """
        if reason := why_not_here():
            raise kernel.LabUnavailableError(reason)
        self._default = Link(rtt_s / 2, jitter_s, rate, loss)
        self._access = access
        self._mtu = mtu
        self._network = IPv4Network(network)
        self._addresses = self._network.hosts()
        self._machines: dict[str, Machine] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._children: list[subprocess.Popen[Any]] = []
        self._closed = False
        self._forwarder = Forwarder(seed, multicast=multicast)
        try:
            self._guard, self._guard_socket = _start_guard()
        except BaseException:
            self._forwarder.close()
            raise

    def add(self, name: str, *, takes_strangers: bool = True) -> str:
        """A machine with links to all others; its address."""
        if name in self._machines:
            raise ValueError(f"there is a machine {name!r} already")
        address = next(self._addresses)
        namespace = kernel.new_namespace()
        try:
            device = kernel.tun_device(namespace, DEVICE, address, self._network.netmask, self._mtu)
        except BaseException:
            os.close(namespace)
            raise
        try:
            socket.send_fds(self._guard_socket, [b"n"], [namespace])
            number = self._forwarder.add(device, address)
        except BaseException:
            os.close(device)
            os.close(namespace)
            raise
        others = list(self._machines)
        self._machines[name] = Machine(name, str(address), namespace, device, number)
        self.set_machine(name, up=self._access, down=self._access, takes_strangers=takes_strangers)
        for other in others:
            for pair in ((name, other), (other, name)):
                self._set(pair, self._default)
        return str(address)

    @property
    def machines(self) -> tuple[str, ...]:
        return tuple(self._machines)

    def machine(self, name: str) -> Machine:
        """As it is now. Raises ValueError for an unknown name."""
        if name not in self._machines:
            raise ValueError(f"there is no machine {name!r}, but {', '.join(self._machines) or 'none'}")
        return self._machines[name]

    def address(self, name: str) -> str:
        return self.machine(name).address

    def set_machine(self, name: str, **changes: Any) -> None:
        """``up``, ``down`` (bit/s or None) and ``takes_strangers`` of a machine; what is not given stays."""
        machine = replace(self.machine(name), **changes)
        _check_rate(machine.up)
        _check_rate(machine.down)
        self._forwarder.set_machine(
            machine.number,
            up=machine.up or 0.0,
            down=machine.down or 0.0,
            takes_strangers=machine.takes_strangers,
        )
        self._machines[name] = machine

    def set_every_machine(self, **changes: Any) -> None:
        """The same for each machine that is there."""
        for name in self._machines:
            self.set_machine(name, **changes)

    def link(self, a: str, b: str) -> Link:
        """The direction from ``a`` to ``b`` as it is now."""
        return self._links[self.machine(a).name, self.machine(b).name]

    def set_link(
        self, a: str, b: str, *, rtt_s: float | None = None, one_way: bool = False, **changes: Any
    ) -> None:
        """Change fields of the link between two machines, both ways or only from ``a`` to ``b``; what is not
        given stays. ``rtt_s`` sets ``latency_s`` to its half. Packets that are under way keep their pace."""
        if rtt_s is not None:
            changes["latency_s"] = rtt_s / 2
        self.machine(a), self.machine(b)
        for pair in [(a, b)] if one_way else [(a, b), (b, a)]:
            self._set(pair, replace(self._links[pair], **changes))

    def set_all(self, *, rtt_s: float | None = None, **changes: Any) -> None:
        """The same for every link, and for those of machines that are added later."""
        if rtt_s is not None:
            changes["latency_s"] = rtt_s / 2
        self._default = replace(self._default, **changes)
        for pair, link in list(self._links.items()):
            self._set(pair, replace(link, **changes))

    def partition(self, side: str | Iterable[str], other: str | Iterable[str] | None = None) -> None:
        """Cut every link between two sides, each a machine or several; ``other`` None: all the rest. What is
        under way is lost too, and nobody is told: packets just do not arrive."""
        self._cut(side, other, is_cut=True)

    def heal(self, side: str | Iterable[str] | None = None, other: str | Iterable[str] | None = None) -> None:
        """Undo ``partition``: of the same sides, or of everything."""
        self._cut(self._machines if side is None else side, other, is_cut=False)

    def inside(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Put this thread into a machine: its sockets, child processes and new threads are made there and
        stay there. Other tasks of an event loop that runs in this thread come along meanwhile."""
        return kernel.inside(self.machine(name).namespace)

    def popen(self, name: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process in a machine; ``options`` are Popen's. ``close`` ends it."""
        with self.inside(name):
            child = subprocess.Popen(argv, **options)
        self._children.append(child)
        return child

    def traffic(self, a: str, b: str) -> Counters:
        """Of the direction from ``a`` to ``b``, since it was made."""
        return self._forwarder.counters(self.machine(a).number, self.machine(b).number)

    def all_traffic(self) -> dict[tuple[str, str], Counters]:
        return {pair: self.traffic(*pair) for pair in self._links}

    def punctuality(self) -> Punctuality:
        """How well the emulation keeps its times since this was last asked."""
        return self._forwarder.punctuality()

    def close(self) -> None:
        """End every process in the machines, SIGTERM first to those of ``popen``, and take all down.
        Idempotent."""
        if self._closed:
            return
        self._closed = True
        for child in self._children:
            if child.poll() is None:
                child.terminate()
        for child in self._children:
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._guard_socket.close()  # kills what is left
        self._guard.wait()
        self._forwarder.close()
        for machine in self._machines.values():
            os.close(machine.device)
            os.close(machine.namespace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def _set(self, pair: tuple[str, str], link: Link) -> None:
        a, b = (self.machine(name).number for name in pair)
        self._forwarder.set_link(
            a,
            b,
            latency_s=link.latency_s,
            jitter_s=link.jitter_s,
            rate=link.rate or 0.0,
            loss=link.loss,
            is_cut=link.is_cut,
        )
        self._links[pair] = link

    def _cut(self, side: str | Iterable[str], other: str | Iterable[str] | None, *, is_cut: bool) -> None:
        here = set(_names(side))
        there = set(self._machines) - here if other is None else set(_names(other))
        if other is None and not there:  # all of them
            there = here
        for name in here | there:
            self.machine(name)
        for a, b in self._links:
            if (a in here and b in there) or (a in there and b in here):
                self._set((a, b), replace(self._links[a, b], is_cut=is_cut))


def _names(side: str | Iterable[str]) -> Iterator[str]:
    if isinstance(side, str):
        yield side
    else:
        yield from side


def _check_rate(rate: float | None) -> None:
    if rate is not None and not 1000 <= rate <= 1e12:
        raise ValueError(f"a rate of {rate!r} is not 1000 to 1e12 bit/s")


def _start_guard() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        guard = subprocess.Popen(
            [sys.executable, "-S", "-m", "scripts.lab.wan_lab.guard", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=child_environment(),
            start_new_session=True,  # a Ctrl-C at the terminal is not for it
        )
    return guard, ours
