"""Prompts are read beside the event loop, each model's apart from others'."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from swarm_node.client import prompt_reader
from swarm_node.client.prompt_reader import PromptReader
from swarm_node.swarm.errors import UsageError
from tests.doubles.fake_swarm import FakeSwarm
from tests.doubles.toy_model import ToyTokenizer


class Stuck(ToyTokenizer):
    """Its template goes on until it is let go."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *more: Any, **options: Any
    ) -> list[int]:
        self.go_on.wait(20)
        return super().apply_chat_template(messages, *more, **options)


async def test_a_slow_template_holds_up_neither_the_loop_nor_other_models() -> None:
    slow = Stuck()
    first, second = (PromptReader(t, vocab_size=300, context=100) for t in (slow, ToyTokenizer()))
    waiting = asyncio.create_task(first.ids("hi", raw=False))
    await asyncio.sleep(0)
    assert await second.ids("hi", raw=True)
    assert not waiting.done()
    slow.go_on.set()
    assert await waiting
    first.close()
    second.close()


async def test_a_prompt_that_waits_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_reader, "READ_S", 0.02)
    slow = Stuck()
    reader = PromptReader(slow, vocab_size=300, context=100)
    with pytest.raises(UsageError, match="not read within"):
        await reader.ids("hi", raw=False)
    slow.go_on.set()
    reader.close()


async def test_a_stream_reads_its_prompt_beside_the_loop() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    async with swarm.client() as model:
        loop_thread, threads = threading.get_ident(), []
        reader = model.tokenizer.apply_chat_template

        def read(*args: Any, **options: Any) -> list[int]:
            threads.append(threading.get_ident())
            return reader(*args, **options)

        model.tokenizer.apply_chat_template = read  # type: ignore[method-assign]
        assert await model.generate("hi", max_new_tokens=2) is not None
        assert threads
        assert loop_thread not in threads
