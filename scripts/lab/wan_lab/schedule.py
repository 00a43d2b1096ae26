"""What happens to a laboratory and when: ``3s cut client; 6s heal``."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

from .network import WanLab
from .units import chance, rate, seconds

_LINK = {
    "rtt": ("rtt_s", seconds),
    "latency": ("latency_s", seconds),
    "jitter": ("jitter_s", seconds),
    "rate": ("rate", rate),
    "loss": ("loss", chance),
}
_MACHINE = {"up": ("up", rate), "down": ("down", rate)}


@dataclass(frozen=True, slots=True)
class Change:
    """``at``: seconds after the schedule's begin. ``machines``: those it names."""

    at: float
    text: str
    machines: tuple[str, ...]
    apply: Callable[[WanLab], None]


def parse_schedule(text: str) -> list[Change]:
    """Changes in the order of their times. They are separated by semicolons or lines, each one of

        3s cut A[,B...] [C,...]              cut the links between these machines (with one side: from all)
        6s heal [A,... [C,...]]              undo that
        8s link A B rtt=200ms loss=1%        also latency, jitter, rate; both ways
        9s all rtt=50ms                      every link
        9s machine A up=10mbit down=none     what all of its links share

    Raises ValueError that says what is wrong.
    """
    lines = [line.split("#")[0].split() for line in re.split(r"[;\n]", text)]
    return sorted((_change(words) for words in lines if words), key=lambda change: change.at)


def _change(words: Sequence[str]) -> Change:
    at = seconds(words[0])
    match list(words[1:]):
        case ["cut", *sides] if 1 <= len(sides) <= 2:
            names = [side.split(",") for side in sides]
            return _made(at, words, [*chain.from_iterable(names)], lambda lab: lab.partition(*names))
        case ["heal", *sides] if len(sides) <= 2:
            names = [side.split(",") for side in sides]
            return _made(at, words, [*chain.from_iterable(names)], lambda lab: lab.heal(*names))
        case ["link", a, b, *rest] if rest:
            changes = _changes(rest, _LINK)
            return _made(at, words, [a, b], lambda lab: lab.set_link(a, b, **changes))
        case ["all", *rest] if rest:
            changes = _changes(rest, _LINK)
            return _made(at, words, [], lambda lab: lab.set_all(**changes))
        case ["machine", name, *rest] if rest:
            changes = _changes(rest, _MACHINE)
            return _made(at, words, [name], lambda lab: lab.set_machine(name, **changes))
    raise ValueError(
        f"{' '.join(words)!r} is no change: after a time, say cut A, heal, link A B rtt=50ms, all rtt=50ms "
        "or machine A up=10mbit"
    )


def _made(
    at: float, words: Sequence[str], machines: Sequence[str], apply: Callable[[WanLab], None]
) -> Change:
    return Change(at, " ".join(words), tuple(machines), apply)


def _changes(words: Sequence[str], known: dict[str, tuple[str, Callable[[str], Any]]]) -> dict[str, Any]:
    changes = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in known:
            raise ValueError(f"{key!r} is not one of {', '.join(known)}")
        name, parse = known[key]
        changes[name] = parse(value)
    return changes


@contextmanager
def following(
    lab: WanLab, changes: Sequence[Change], said: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """Make the changes happen, in a thread, counted from now, until this is left. ``said`` is told of each.

    Raises ValueError before anything happens if one names a machine that is not there.
    """
    for change in changes:
        for name in change.machines:
            lab.machine(name)
    left = threading.Event()

    def follow(began: float) -> None:
        for change in changes:
            if left.wait(max(0.0, began + change.at - time.monotonic())):
                return
            change.apply(lab)
            said(change.text)

    thread = threading.Thread(target=follow, args=(time.monotonic(),), daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()
