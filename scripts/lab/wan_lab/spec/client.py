"""The client of the measurement, in a process and a machine of its own: answers what it is asked to, with and
without speculation, and says what each answer took."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import uvloop

from swarm_node.client import AsyncSwarmModel
from swarm_node.client.connecting import SessionOptions, checked_entry, open_models, part
from swarm_node.client.decoding.head_batch import HeadBatcher
from swarm_node.client.generation import Generation, GenerationRun
from swarm_node.client.guided.guide import Guide
from swarm_node.client.guided.token_guide import Guides
from swarm_node.client.params import GenerationParams
from swarm_node.client.session.shared_prompt import SharedPrompt

from ...processes.parent import next_order, tell
from ...prompts import MODEL
from .forced import ForcedText
from .stand_in import KnownAnswer, StandIn


def answer_orders(**options: Any) -> None:
    uvloop.run(_answer_orders(**options))


async def _answer_orders(*, initial_peers: Sequence[str], threads: int, wire_codec: str) -> None:
    """Each order is the keyword arguments of ``Asking.answer``; it is answered by the event "answered". They
    end with an order without a prompt, or with the parent."""
    options: Any = {
        "initial_peers": initial_peers,
        "threads": threads,
        "wait": 30,
        "wire_codec": wire_codec,
        "prefix_cache": False,
    }
    entry = checked_entry(options)
    network, (local,) = await open_models([str(MODEL)], entry, options)
    async with AsyncExitStack() as stack:
        model = AsyncSwarmModel(local, network, **part(options, SessionOptions))
        await stack.enter_async_context(model)
        await model.read_announcements()
        await model.wait_for_route()
        asking = Asking(model)
        stack.push_async_callback(asking.close)
        tell("ready")
        while (order := await next_order()) and "prompt" in order:
            tell("answered", **await asking.answer(**order))


class Asking:
    """One client's answers, whose drafts and guides are what a measurement needs."""

    def __init__(self, model: AsyncSwarmModel) -> None:
        self._model = model
        self._heads = HeadBatcher(model.local.head)
        self._guides = Guides(model.tokenizer, model.vocab_size)

    async def close(self) -> None:
        self._guides.close()
        await self._heads.close()

    async def answer(
        self,
        *,
        prompt: Any,
        options: dict[str, Any],
        forced: Sequence[int] | None = None,
        known: Sequence[int] | None = None,
        stand_in: dict[str, Any] | None = None,
        schema: str | None = None,
    ) -> dict[str, Any]:
        """``prompt``: as ``generate`` takes it. ``options``: of ``generate``. ``forced``: the only answer
        that the guide allows; or ``schema``: what it must keep to. ``known``: the answer, which the
        ``stand_in`` guesses."""
        model = self._model
        ids = await model.reader.ids(prompt, raw=False)
        params = GenerationParams.of(options, vocab_size=model.vocab_size)
        guide = None
        if forced is not None:
            guide = partial(_made, ForcedText(forced))
        elif schema is not None:
            guide = partial(self._guides.open, Guide("json_schema", schema))
        draft: Any = model.local.draft
        if known is not None and stand_in is not None:
            draft = KnownAnswer(known, StandIn.of(stand_in))
        run = GenerationRun(
            ids,
            params,
            model=model.model,
            heads=self._heads,
            detokenizer=model.tokenizer.stream(params.skip_special_tokens, after=ids),
            eos_ids=model.tokenizer.eos_ids,
            session=model.session(len(ids) + params.max_new_tokens, prompt_tokens=len(ids)),
            feed=SharedPrompt(partial(_made, ids)).feed,
            guide=guide,
            draft_model=draft,
        )
        async for _ in run.events():
            pass
        assert run.result is not None
        return told(run.result)


async def _made(value: Any) -> Any:
    return value


def told(answer: Generation) -> dict[str, Any]:
    """What one answer took. ``rows``, ``compute_s``, ``queue_s`` and ``steps`` of each hop while decoding."""
    times, hops = answer.timings, answer.hops
    return {
        "token_ids": list(answer.token_ids),
        "tokens": times.new_tokens,
        "decode_s": times.decode_s,
        "prefill_s": times.prefill_s,
        "local_s": times.local_s,
        "speculation": answer.speculated.as_dict(times.new_tokens, times.decode_s),
        "steps": [hop.decode.steps for hop in hops],
        "rows": [hop.decode.tokens for hop in hops],
        "compute_s": [hop.decode.compute_s for hop in hops],
        "queue_s": [hop.decode.queue_s for hop in hops],
        "codec_s": [hop.decode.codec_s for hop in hops],
        "bytes_sent": [hop.decode.bytes_sent for hop in hops],
        "repairs": answer.repairs,
        "paths": sorted({way for hop in hops for way in (hop.ways.here, hop.ways.on) if way}),
    }
