"""Prompts to token ids, beside the event loop.

Chat templates and tokenizers come with the model and texts from strangers: either may be slow. Each model has
one thread of its own for them, so that a slow one delays neither the loop nor other models' prompts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ..swarm.errors import UsageError
from .params import Prompt, PromptTokenizer, prompt_ids

T = TypeVar("T")

READ_S = 20.0
"""For one prompt, its turn included; usual is a millisecond. Where a template is ended for each of many
requests, those that wait give up here."""


class PromptReader:
    """``context``: tokens that the model holds; a longer prompt is refused before all of it is read."""

    def __init__(self, tokenizer: PromptTokenizer, *, vocab_size: int, context: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._context = context
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="swarm-prompts")

    async def ids(self, prompt: Prompt, *, raw: bool) -> Sequence[int]:
        """As ``prompt_ids``. Raises UsageError, and ChatTemplateError where the template is at fault."""

        def read() -> list[int]:
            return prompt_ids(
                self._tokenizer, prompt, raw=raw, vocab_size=self._vocab_size, most=self._context
            )

        if is_ids(prompt):
            return read()
        try:
            return await self.run(read)
        except TimeoutError:
            raise UsageError(
                f"the prompt was not read within {READ_S:.0f} s",
                hint="Try again: prompts of others were before it, or the model's chat template is slow.",
            ) from None

    async def run(self, work: Callable[[], T]) -> T:
        """``work`` in this model's thread. Raises TimeoutError after ``READ_S``; what has begun then still
        goes on."""
        async with asyncio.timeout(READ_S):
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """What waits is not done any more. May be called again."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def is_ids(prompt: Any) -> bool:
    """Whether it is token ids, which need no reading."""
    return not isinstance(prompt, str) and len(prompt) > 0 and type(prompt[0]) is int
