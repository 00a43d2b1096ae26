"""The generations of one request: run side by side, what they make handed over through a bounded buffer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Self

from ...swarm.errors import SwarmError
from ...swarm.types import Route
from ..async_model import AsyncSwarmModel
from ..generation import Generation, TokenEvent
from ..params import GenerateOptions
from ..streams import TextStream
from .admission import Admission
from .errors import internal

MAX_BUFFERED = 64
"""Tokens that a request's reader may be behind before its generations wait for it."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One generation: a choice of the answer."""

    prompt: tuple[int, ...]
    options: GenerateOptions


Item = tuple[int, TokenEvent | Generation]
"""What choice, and what it made: tokens, and at its end the whole."""


class Answering:
    """``async with`` starts the generations; leaving it ends those that still run and frees their hops.

    The first failure of any ends all. ``queued_s``: how long the first of them waited for its turn.
    """

    def __init__(self, model: AsyncSwarmModel, wanted: Sequence[Wanted], admission: Admission) -> None:
        self.queued_s = 0.0
        self._model = model
        self._wanted = wanted
        self._admission = admission
        self._began = perf_counter()
        self._tasks: list[asyncio.Task[None]] = []
        self._streams: list[TextStream] = []
        self._items: list[Item] = []
        self._running = len(wanted)
        self._failure: Exception | None = None
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def route(self) -> Route | None:
        """Of the choice that began first; None before there is one."""
        return self._streams[0].route if self._streams else None

    async def next(self) -> list[Item]:
        """What was made since the last call; empty at the end. Raises what the generations failed of."""
        while not self._items:
            if self._failure is not None:
                raise self._failure
            if not self._running:
                return []
            self._news.clear()
            await self._news.wait()
        items, self._items = self._items, []
        self._room.set()
        return items

    def fail(self, error: Exception) -> None:
        """Let ``next`` raise ``error`` once what was made before is handed over."""
        self._failure = self._failure or error
        self._news.set()

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._run(index, wanted), name=f"choice-{index}")
            for index, wanted in enumerate(self._wanted)
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, index: int, wanted: Wanted) -> None:
        try:
            async with self._admission.generation():
                if not self._streams:
                    self.queued_s = perf_counter() - self._began
                async with self._model.stream(wanted.prompt, **wanted.options) as stream:
                    self._streams.append(stream)
                    async for event in stream.events():
                        await self._put((index, event))
                    await self._put((index, stream.result))
        except SwarmError as error:
            self.fail(error)
        except Exception:
            _logger.exception("a generation failed")
            self.fail(internal())
        finally:
            self._running -= 1
            self._news.set()

    async def _put(self, item: Item) -> None:
        while len(self._items) >= MAX_BUFFERED:
            self._room.clear()
            await self._room.wait()
        self._items.append(item)
        self._news.set()
