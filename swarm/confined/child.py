"""The process in which a confined program runs; ``process`` starts it, as a file, in a bare interpreter.

It imports nothing of this project: only what the program itself names is loaded, so that it starts fast and
holds little. Each frame from standard input is a request, each on standard output its reply. It ends with its
input, so it never outlives the process that started it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, BinaryIO

HEAD_BYTES = 4
"""A frame begins with this many bytes: the length of the JSON text that follows, big-endian."""
SHOWN = 500
"""At most this many characters of an error's text are passed on."""
USED_UP, FAILED, DONE = "used_up", "failed", "done"
"""Keys of a reply: the memory is used up; the program raised an error; what the program returned."""


def encoded(value: Any) -> bytes:
    """A frame. Lone surrogates pass through it as they are."""
    text = json.dumps(value, ensure_ascii=False, check_circular=False).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(HEAD_BYTES, "big") + text


def decoded(text: bytes) -> Any:
    """What ``encoded`` was given; ValueError for what it never made."""
    return json.loads(text.decode("utf-8", "surrogatepass"))


def main(settings: dict[str, Any]) -> None:
    """``settings``: ``program`` (a file that defines ``opened``), ``paths`` to import its packages from,
    ``memory_bytes``, ``cpu_s`` of a request."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the program prints is not a reply
    _confine(settings["memory_bytes"])
    sys.path += settings["paths"]
    with open(settings["program"], encoding="utf-8") as file:
        program: dict[str, Any] = {"__name__": "program", "__file__": settings["program"]}
        exec(compile(file.read(), settings["program"], "exec"), program)
    answer = program["opened"]
    while text := _read(sys.stdin.buffer):
        _allow(settings["cpu_s"])
        try:
            reply = answer(decoded(text))
            if answer is program["opened"]:  # its first request gives what answers all the others
                reply, answer = reply
            frame = encoded({DONE: reply})
        except MemoryError:
            frame = encoded({USED_UP: "memory"})
        except BaseException as error:  # noqa: BLE001 - a library's panic is no Exception
            frame = encoded({FAILED: f"{type(error).__name__}: {str(error)[:SHOWN]}"})
        replies.write(frame)
        replies.flush()


def _read(requests: BinaryIO) -> bytes:
    """The next request; nothing once there will be no more."""
    head = requests.read(HEAD_BYTES)
    return requests.read(int.from_bytes(head, "big")) if len(head) == HEAD_BYTES else b""


def _confine(memory_bytes: int) -> None:
    """From here on this process gets ``memory_bytes`` of memory and may write no file. Windows has no such
    limits."""
    try:
        import resource
    except ImportError:
        return
    limits = {"RLIMIT_AS": memory_bytes, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0}
    for name, limit in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (limit, limit))
        except (AttributeError, ValueError, OSError):
            pass  # not on this system (macOS refuses the first): the parent watches, too


def _allow(cpu_s: int) -> None:
    """From here on allow ``cpu_s`` seconds of processor time; the system ends a process that takes more."""
    try:
        import resource
    except ImportError:
        return
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(time.process_time()) + 1 + cpu_s
    resource.setrlimit(
        resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
