"""The generations of one request: run side by side, each handing over what it makes in its own task.

There is no buffer and no second task between a token and its event: at 16 streams they cost as much as the
event's rendering and sending together. A reader that takes nothing therefore holds up its own generations,
once the connection's buffer is full.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter

from ....swarm.errors import SwarmError
from ....swarm.types import Route
from ...async_model import AsyncSwarmModel
from ...decoding.answer import TokenEvent
from ...generation import Generation
from ...http.admission import GatewayAdmission
from ...http.body import ClientGoneError
from ...http.errors import internal
from ...streams import TextStream
from ..requests.prompts import WantedChoice

logger = logging.getLogger(__name__)


Take = Callable[[int, TokenEvent | Generation], Awaitable[None]]
"""What choice, and what it made: tokens, and at its end the whole."""


class Answering:
    """``caller``: whose turn its generations take. ``queued_s``: how long the first of them waited for it.
    ``streams``: those that have begun. ``tokens``: made so far; ``first_at``: when (perf_counter) the first
    was made, None before."""

    def __init__(
        self,
        model: AsyncSwarmModel,
        wanted: Sequence[WantedChoice],
        admission: GatewayAdmission,
        caller: str = "",
    ) -> None:
        self.queued_s = 0.0
        self.streams: list[TextStream] = []
        self.tokens = 0
        self.first_at: float | None = None
        self._model = model
        self._wanted = wanted
        self._admission = admission
        self._caller = caller
        self._began = perf_counter()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def first(self) -> TextStream | None:
        """The choice that began first; None while none has its turn."""
        return self.streams[0] if self.streams else None

    @property
    def route(self) -> Route | None:
        """Of the choice that began first; None before there is one."""
        return self.first.route if self.first is not None else None

    def fail(self, error: Exception) -> None:
        """End what runs; ``run`` raises ``error``, unless something else failed before."""
        if not self._failed.done():
            self._failed.set_exception(error)

    async def run(self, take: Take) -> None:
        """Make all choices. The first failure of any ends all and is raised; their hops are freed then."""
        choices = [
            asyncio.create_task(self._run(index, stream, take), name=f"choice-{index}")
            for index, stream in self._streams_of_prompts()
        ]
        running: set[asyncio.Future[None]] = set(choices)
        try:
            while running and not self._failed.done():
                await asyncio.wait((*running, self._failed), return_when=asyncio.FIRST_COMPLETED)
                running = {choice for choice in running if not choice.done()}
        finally:
            for choice in choices:
                choice.cancel()
            await asyncio.gather(*choices, return_exceptions=True)
            self._failed.cancel()
        if not self._failed.cancelled():
            self._failed.result()

    def _streams_of_prompts(self) -> list[tuple[int, TextStream]]:
        """A stream for each choice, by its number."""
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for index, wanted in enumerate(self._wanted):
            by_prompt.setdefault(wanted.prompt, []).append(index)
        return [
            numbered
            for prompt, indices in by_prompt.items()
            for numbered in zip(
                indices,
                self._model.streams(prompt, [self._wanted[index].options for index in indices]),
                strict=True,
            )
        ]

    async def _run(self, index: int, stream: TextStream, take: Take) -> None:
        try:
            async with self._admission.generation(self._caller):
                if not self.streams:
                    self.queued_s = perf_counter() - self._began
                async with stream:
                    self.streams.append(stream)
                    async for event in stream.events():
                        if not self.tokens:
                            self.first_at = perf_counter()
                        self.tokens += 1
                        await take(index, event)
                    await take(index, stream.result)
        except (SwarmError, ClientGoneError) as error:
            self.fail(error)
        except Exception:
            logger.exception("a generation failed")
            self.fail(internal())
