"""Many streams at once: each says what it says alone, and they share calls of the head."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from swarm_node.client.decoding import head_batch
from swarm_node.client.decoding.head_batch import HeadBatcher
from tests.client.gateway.gateway_case import Serve, text_of
from tests.doubles.fake_swarm import expected

STREAMS, TOKENS = 16, 12


class PatientHead:
    """In place of ``head.logits``: a call ends when all who could share the next one wait for it, so that
    how many share one is no matter of the machine's speed."""

    def __init__(self, heads: HeadBatcher) -> None:
        self._heads, self._logits = heads, heads._head.logits
        self._all_have_begun = False

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        until = time.monotonic() + 60
        while self._heads._in_thread < (self._heads._generations if self._all_have_begun else STREAMS):
            assert time.monotonic() < until, "who is it that never comes?"
            time.sleep(0.0005)
        self._all_have_begun = True
        return self._logits(hidden)


async def test_sixteen_streams_say_what_each_says_alone(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_batch, "LONGEST_INLINE_S", 0.0)
    served = await serve(a="0-2", b="3-5", latency=0.001, speculate="off")
    heads = served.model._heads
    monkeypatch.setattr(heads._head, "logits", PatientHead(heads).logits)
    prompts = [f"prompt number {number}" for number in range(STREAMS)]

    async def ask(prompt: str) -> tuple[str, int]:
        text, usage = "", None
        async for chunk in await served.openai.completions.create(
            model="toy",
            prompt=prompt,
            temperature=0,
            max_tokens=TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        ):
            text += chunk.choices[0].text if chunk.choices else ""
            usage = chunk.usage
        assert usage is not None
        return text, usage.completion_tokens

    together = await asyncio.gather(*map(ask, prompts))
    alone = [text_of(expected(served.model.tokenizer.encode(prompt), TOKENS)) for prompt in prompts]
    assert together == [(text, TOKENS) for text in alone]
    assert heads.rows >= 4 * heads.calls  # two cohorts of eight, but for the beginning and the end
    assert await ask(prompts[3]) == together[3]


async def test_sampled_answers_do_not_depend_on_who_else_asks(serve: Serve) -> None:
    served = await serve()
    request = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 10, "ignore_eos": True}
    alone = [(await served.complete("x", seed=seed, **request)).json()["choices"] for seed in range(8)]
    together = await asyncio.gather(*(served.complete("x", seed=seed, **request) for seed in range(8)))
    assert [response.json()["choices"] for response in together] == alone
