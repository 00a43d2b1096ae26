"""One of the two processes that compute the same rows in turn, with all experts in memory or with some."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from pathlib import Path

import numpy as np
import psutil

from swarm_node.shards.layers.kv_pool import BatchSlice
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.shards.native.span import WEIGHTS_SHARE, NativeSpan
from swarm_node.swarm.types import Span

from ...lab.processes.parent import next_order, tell
from .made_file import open_made
from .rows import Locality, Rows, choices, locality

OWN_MB = 100
"""Of the limit, for Python and the KV cache."""
CGROUPS = Path("/sys/fs/cgroup/memory")


class _Decoding:
    """Of ``sessions``, for at most ``steps``."""

    def __init__(self, model: NativeSpan, sessions: int, topics: int, steps: int) -> None:
        self._model = model
        self._memory, self._sessions = OwnMemory(model, "float32", steps, sessions), sessions
        self._rows = Rows(sessions, topics)
        self._step = 0
        self._outputs = hashlib.sha256()

    def step(self) -> float:
        """Returns how many seconds it took."""
        x, slices = self._rows.next(), self._slices()
        began = time.perf_counter()
        out = self._model.forward(x, slices, self._memory.pool)
        took = time.perf_counter() - began
        self._outputs.update(out.tobytes())
        self._step += 1
        return took

    def digest(self) -> str:
        return self._outputs.hexdigest()

    def locality(self, routers: list[tuple[np.ndarray, np.ndarray]], steps: int) -> Locality:
        """Of ``steps`` more, a block at a time. What attention adds in a block is not seen here by its
        router."""
        chosen, guessed = [], []
        for _ in range(steps):
            x = self._rows.next()
            of_blocks, guesses = [], []
            for block, router in enumerate(routers):
                of_blocks.append(choices(x, *router))
                if block + 1 < len(routers):
                    guesses.append(choices(x, *routers[block + 1]))
                span = Span(block, block + 1)
                x = self._model.forward(x, self._slices(), self._memory.pool, span)
            chosen.append(of_blocks)
            guessed.append(guesses)
            self._step += 1
        return locality(np.array(chosen), np.array(guessed))

    def _slices(self) -> list[BatchSlice]:
        each = range(self._sessions)
        return [self._memory.slice(self._step, 1, row=session, session=session) for session in each]


def compute(*, path: str, blocks: int, threads: int, limit: int | None) -> None:
    """Takes orders: {sessions, topics, steps} of a new decoding, {} for a step of it, {locality} for that
    many more tokens. Tells after each. ``limit``: bytes of memory; None: no limit."""
    kind = None if limit is None else _confine(limit)
    memory = None if limit is None else int((limit - (OWN_MB << 20)) / WEIGHTS_SHARE)
    with open_made(Path(path), blocks) as checkpoint:
        model = load_backend(
            checkpoint, Span(0, blocks), LoadOptions(kernels="native"), threads=threads, memory=memory
        )
        if not isinstance(model, NativeSpan):
            raise TypeError(f"not our kernels: {model.kernels}")
        names = [f"model.layers.{block}.mlp.router" for block in range(blocks)]
        routers = [
            (checkpoint.tensor(f"{name}.weight").dequantize(), checkpoint.tensor(f"{name}.bias").dequantize())
            for name in names
        ]
        store = model.store
        experts = None if store is None else [store.slots, store.count]
        tell("ready", limit=kind, experts=experts, weights=model.weights)
        decoding: _Decoding | None = None
        while (order := asyncio.run(next_order())) is not None:
            if "sessions" in order:
                decoding = _Decoding(model, **order)
                tell("begun")
            elif decoding is None:
                raise ValueError("nothing was begun")
            elif "locality" in order:
                tell("locality", **decoding.locality(routers, order["locality"])._asdict())
            else:
                tell(
                    "step",
                    took=decoding.step(),
                    outputs=decoding.digest(),
                    rss_mb=psutil.Process().memory_info().rss / 1e6,
                    state=None if store is None else store.state()._asdict(),
                )


def _confine(limit: int) -> str:
    """This process into a memory cgroup of ``limit`` bytes. Returns how it is limited."""
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    own = next((line.split(":memory:/", 1)[1] for line in lines if ":memory:/" in line), None)
    group = CGROUPS / (own or "") / f"experts-{os.getpid()}"
    try:
        if own is None:
            raise OSError("no memory cgroup")
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        return f"only the store's own budget ({error})"
    return "memory cgroup, the file's pages included"


def remove_groups() -> None:
    for group in CGROUPS.rglob("experts-*"):
        if not (group / "cgroup.procs").read_text(encoding="utf-8").strip():
            group.rmdir()
