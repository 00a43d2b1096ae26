"""Prompts to token ids, beside the event loop.

Chat templates and tokenizers come with the model and texts from strangers: either may be slow. Each model has
two threads of its own for them, one for short texts and one for long ones, and in each of them askers take
turns. So a slow model delays neither the loop nor other models' prompts, and long texts delay one another
only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..swarm.errors import UsageError
from ..swarm.fairness.thread import ASKER, FairThread
from .params import Prompt, Raw, prompt_ids

if TYPE_CHECKING:
    from ..shards.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")

SHORT_BYTES = 32 * 1024
"""A text of up to this many bytes is read in some ten milliseconds: most prompts are shorter."""
READ_S = 20.0
"""Seconds for one prompt, its turn included; a millisecond is usual. If a template is ended for each of many
requests, those that wait give up after this time."""


class PromptReader:
    """``context``: tokens that the model holds; a longer prompt is refused before all of it is read."""

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, context: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._context = context
        self._short = FairThread("swarm-prompts")
        self._long = FairThread("swarm-long-prompts")

    async def ids(self, prompt: Prompt, *, raw: Raw) -> Sequence[int]:
        """As ``prompt_ids``. Raises UsageError, and ChatTemplateError where the template is at fault."""

        def read() -> list[int]:
            return prompt_ids(
                self._tokenizer, prompt, raw=raw, vocab_size=self._vocab_size, most=self._context
            )

        if is_ids(prompt):
            return read()
        try:
            return await self.run(read, len(prompt) if isinstance(prompt, str) else 0)
        except TimeoutError:
            raise UsageError(
                f"the prompt was not read within {READ_S:.0f} s",
                hint="Try again: prompts of others were before it, or the model's chat template is slow.",
            ) from None

    async def run(self, work: Callable[[], T], nbytes: int = 0) -> T:
        """``work`` in one of this model's threads, in the turn of the current ``ASKER``. ``nbytes``: of what
        it reads, where that is more than the asker's request. Raises TimeoutError after ``READ_S``; the
        processes that it waits for are ended then."""
        nbytes = max(nbytes, ASKER.get().nbytes)
        thread = self._short if nbytes <= SHORT_BYTES else self._long
        async with asyncio.timeout(READ_S):
            return await thread.run(work)

    def close(self) -> None:
        """What waits is not done any more. Idempotent."""
        self._short.close()
        self._long.close()


def is_ids(prompt: Any) -> bool:
    """Whether it is token ids, which need no reading."""
    return not isinstance(prompt, str) and len(prompt) > 0 and type(prompt[0]) is int
