"""An event loop whose clock jumps to the next timer when nothing else is to be done: hours pass in a blink.

For code without threads and sockets: fakes over the in-memory network.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
import sys
from collections.abc import Callable, Coroutine
from types import ModuleType
from typing import Any, TypeVar

import pytest

from swarm_node.client.decoding import head_batch
from swarm_node.swarm.codecs import native
from swarm_node.swarm.links import link

T = TypeVar("T")

TICK_S = 1e-9
"""Even where nothing is waited for, this many seconds pass from one turn of the loop to the next: a remainder
too small to be added to the time must not be waited for again and again."""
THREAD_S = 10.0
"""Where no timer is left, a thread may still have something for the loop, within this many real seconds."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """``now``: seconds since some moment."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Waits for its threads without the loop, for which nothing would ever happen any more."""
        self._executor_shutdown_called = True
        if (executor := self._default_executor) is not None:  # type: ignore[attr-defined]
            executor.shutdown(wait=True)


class _Selector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._of = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            if events := super().select(THREAD_S):
                return events
            raise AssertionError("nothing will ever happen any more")
        self._of.now += max(TICK_S, timeout)
        return super().select(0) if timeout > 0 else []


@functools.lru_cache(1)
def _with_clocks(loaded: int) -> list[ModuleType]:
    """Those of swarm_node that look at a clock, once ``loaded`` modules are there."""
    ours = [module for name, module in list(sys.modules.items()) if name.startswith("swarm_node.")]
    return [module for module in ours if hasattr(module, "perf_counter")]


def run(monkeypatch: pytest.MonkeyPatch, work: Coroutine[Any, Any, T], loop: VirtualLoop | None = None) -> T:
    """The result of ``work``, with the loop's clock in place of ``perf_counter`` in all of swarm_node."""
    loop = loop or VirtualLoop()
    for module in _with_clocks(len(sys.modules)):
        monkeypatch.setattr(module, "perf_counter", loop.time)
    monkeypatch.setattr(link, "wall_clock", loop.time)
    for bound in ("LONGEST_INLINE_S", "MOST_INLINE"):
        monkeypatch.setattr(head_batch, bound, float("inf"))
    monkeypatch.setattr(native, "warm_up", lambda: None)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work)


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """An async test, with its fixtures and parameters, by ``run``."""

    @functools.wraps(test)
    def run_it(*args: Any, **options: Any) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            run(monkeypatch, test(*args, **options))

    return run_it


def now() -> float:
    """Seconds, by the running loop's clock."""
    return asyncio.get_running_loop().time()
