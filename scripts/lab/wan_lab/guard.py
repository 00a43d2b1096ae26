"""Ends what runs in the namespaces of a laboratory once that is over or was killed; see ``network``.

    python -S -m scripts.lab.wan_lab.guard FD

FD is a socket that brings file descriptors of namespaces; its end is the laboratory's. Holding them keeps the
kernel from giving their inode numbers to namespaces of somebody else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time

from .kernel import namespace_inode, processes_in

PATIENCE_S = 10.0
"""A killed process may take a moment to be gone."""


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    namespaces: set[int] = set()
    with socket.socket(fileno=int(sys.argv[1])) as lab:
        while True:
            data, descriptors, _, _ = socket.recv_fds(lab, 1, 8)
            if not data:
                break
            namespaces |= {namespace_inode(descriptor) for descriptor in descriptors}
    deadline = time.monotonic() + PATIENCE_S
    while (running := processes_in(namespaces)) and time.monotonic() < deadline:
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return 0


if __name__ == "__main__":
    sys.exit(main())
