"""The process that runs one target, and may die of it: input after input until its time is over.

Every input is written down before it is run, so that the one that ends this process is known. Each finding
and, twice a second, the counts are an event.
"""

from __future__ import annotations

import gc
import logging
import mmap
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random

import psutil

from ..processes.parent import tell
from .target import Prepared, Target, target_named

LAST = "last-input"
"""The file that holds the input that is being run: its length in 8 bytes, then its bytes."""
HOME_CORPUS = 400
"""Inputs that are kept because something new came of them."""
REPORT_S = 0.5
WARM_UP = 0.25
"""Part of the time after which memory is looked at for the first time: caches have filled by then."""


class Fuzzer:
    """``run`` until the time or the inputs are over. ``tell``: is called with the name and the fields of each
    event. ``folder``: for the input that is being run."""

    def __init__(self, target: Target, seed: str, folder: Path, tell: Callable[..., None]) -> None:
        self.target = target
        self.tell = tell
        self.rng = Random(seed)
        self.prepared: Prepared = target.prepare()
        self.corpus = list(self.prepared.seeds)
        self.inputs = 0
        self.outcomes: set[str] = set()
        self.memory_at_warm_up = 0
        self._found: set[str] = set()
        last = folder / LAST
        last.write_bytes(bytes(8 + 2 * target.largest))
        self._file = last.open("r+b")
        self._last = mmap.mmap(self._file.fileno(), 0)

    def run(self, seconds: float, most: int) -> None:
        began = told = time.monotonic()
        self.tell("begin")
        for data in self.prepared.seeds:
            self.one(data)
        while (elapsed := time.monotonic() - began) < seconds and self.inputs < most:
            self.one(self.next_input())
            done = max(elapsed / seconds, self.inputs / most)
            if not self.memory_at_warm_up and done >= WARM_UP:
                self.memory_at_warm_up = memory()
            if time.monotonic() - told >= REPORT_S:
                told = time.monotonic()
                self.tell("counts", inputs=self.inputs)
        try:
            self.prepared.close()
        except Exception as error:  # noqa: BLE001  what is left over is a finding like any other
            self.found("left over", b"", error)
        gc.collect()
        self.tell(
            "end",
            inputs=self.inputs,
            outcomes=len(self.outcomes),
            corpus=len(self.corpus),
            memory_at_warm_up=self.memory_at_warm_up,
            memory=memory(),
        )

    def next_input(self) -> bytes:
        data = self.rng.choice(self.corpus)
        for _ in range(self.rng.choice((1, 1, 1, 2, 4))):
            data = self.target.mutate(self.rng, data)[: self.target.largest]
        return data

    def one(self, data: bytes) -> None:
        self.inputs += 1
        self._last[: 8 + len(data)] = len(data).to_bytes(8, "big") + data
        began = time.process_time()
        try:
            outcome = self.prepared.run(data)
        except self.target.refusals as error:
            outcome = f"{type(error).__name__} {_where(error)} {_words(error)}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            outcome = f"{type(error).__name__} {_where(error)}"
            self.found("error", data, error)
        took = time.process_time() - began
        if took > self.target.slow_s:
            self.found(f"slow: {took:.1f} s of processor", data, None)
        if outcome not in self.outcomes:
            self.outcomes.add(outcome)
            if len(self.corpus) < HOME_CORPUS:
                self.corpus.append(data)

    def found(self, kind: str, data: bytes, error: BaseException | None) -> None:
        where = "" if error is None else f"{_where(error)} {_words(error)}"
        key = f"{kind.partition(':')[0]} {type(error).__name__} {where}"
        if key in self._found:
            return
        self._found.add(key)
        text = "" if error is None else "".join(traceback.format_exception(error))[-4000:]
        self.tell("finding", kind=kind, input=data.hex(), error=text)


def _where(error: BaseException) -> str:
    """The lines of code that an error went through: what was reached, as a name for it."""
    frames = traceback.extract_tb(error.__traceback__)
    return " ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-4:])


def _words(error: BaseException) -> str:
    """How its message begins, without what differs from input to input."""
    return "".join(character for character in str(error)[:40] if character.isalpha())[:24]


def memory() -> int:
    """Resident bytes of this process."""
    return int(psutil.Process().memory_info().rss)


def fuzz(*, name: str, seed: str, seconds: float, inputs: int, folder: str) -> None:
    logging.disable(logging.CRITICAL)
    Fuzzer(target_named(name), seed, Path(folder), tell).run(seconds, inputs)
