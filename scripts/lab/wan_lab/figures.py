"""What a laboratory's links really do, measured with sockets in its machines, beside what was asked."""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .network import WanLab

ANSWER_S = 5.0
"""A datagram that takes longer counts as lost."""


def round_trips(lab: WanLab, a: str, b: str, count: int = 50) -> list[float]:
    """Seconds that small datagrams take from ``a`` to ``b`` and back, lost ones left out."""
    found = []
    with _datagrams(lab, a, b) as (here, there):
        for number in range(count):
            text = str(number).encode()
            began = time.perf_counter()
            here.sendto(text, there.getsockname())
            try:
                _receive(there, text)
                there.sendto(text, here.getsockname())
                _receive(here, text)
            except TimeoutError:
                continue
            found.append(time.perf_counter() - began)
    return found


def loss(lab: WanLab, a: str, b: str, count: int = 2000) -> float:
    """The part of ``count`` datagrams from ``a`` that do not come to ``b``, sent at about 8 Mbit/s."""
    with _datagrams(lab, a, b) as (here, there):
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        for number in range(count):
            here.sendto(bytes(100), there.getsockname())
            if number % 20 == 19:
                time.sleep(0.002)
        there.settimeout(0.2 + lab.link(a, b).latency_s + lab.link(a, b).jitter_s)
        came = 0
        while True:
            try:
                there.recv(200)
            except TimeoutError:
                return 1 - came / count
            came += 1


def goodput(lab: WanLab, a: str, b: str, seconds: float = 2.0) -> float:
    """Bytes of a TCP stream from ``a`` that arrive at ``b``, as bit/s, once it has got up to speed."""
    with lab.inside(b):
        server = socket.create_server((lab.address(b), 0))
    with server, lab.inside(a):
        sender = socket.create_connection(server.getsockname(), timeout=ANSWER_S)
        receiver, _ = server.accept()
    with sender, receiver:
        receiver.settimeout(ANSWER_S)
        thread = threading.Thread(target=_send_for_ever, args=(sender,), daemon=True)
        thread.start()
        buffer = bytearray(1 << 20)
        warm = time.perf_counter() + 0.3 + 20 * lab.link(a, b).latency_s
        while time.perf_counter() < warm:
            receiver.recv_into(buffer)
        received, began = 0, time.perf_counter()
        while (now := time.perf_counter()) < began + seconds:
            received += receiver.recv_into(buffer)
        receiver.shutdown(socket.SHUT_RDWR)
        sender.shutdown(socket.SHUT_RDWR)
        thread.join()
    return received * 8 / (now - began)


def figures(lab: WanLab, a: str, b: str, *, seconds: float = 2.0) -> dict[str, Any]:
    """All of them, asked and measured, for the link between two machines as it is set now.

    ``goodput`` is of TCP: of the rate asked, IP and TCP headers take 4 % at 1500 bytes a packet.
    """
    there, back = lab.link(a, b), lab.link(b, a)
    lab.punctuality()
    times = round_trips(lab, a, b)
    late = lab.punctuality()
    before = late.cpu_s
    report: dict[str, Any] = {
        "rtt_ms": 1000 * (there.latency_s + back.latency_s),
        "measured_rtt_p50_ms": 1000 * statistics.median(times) if times else None,
        "measured_rtt_max_ms": 1000 * max(times) if times else None,
        "forwarder_late_ms": 1000 * late.mean_late_s,
        "loss": there.loss,
        "measured_loss": loss(lab, a, b),
        "rate": there.rate,
        "measured_goodput": goodput(lab, a, b, seconds),
    }
    after = lab.punctuality()
    return report | {"forwarder_cpu_s": after.cpu_s - before, "realtime": after.realtime}


@contextmanager
def _datagrams(lab: WanLab, a: str, b: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    with datagram_socket(lab, a) as here, datagram_socket(lab, b) as there:
        yield here, there


@contextmanager
def datagram_socket(lab: WanLab, name: str) -> Iterator[socket.socket]:
    with lab.inside(name):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        made.bind((lab.address(name), 0))
        made.settimeout(ANSWER_S)
        yield made


def _receive(there: socket.socket, text: bytes) -> None:
    while there.recv(100) != text:  # an answer that came too late
        pass


def _send_for_ever(sender: socket.socket) -> None:
    sender.settimeout(ANSWER_S)
    data = bytes(1 << 18)
    try:
        while True:
            sender.sendall(data)
    except OSError:
        return
